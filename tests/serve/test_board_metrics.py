"""Reading `metrics.jsonl` while it is written, and reducing curves."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from boarding import steps, write_lines
from hypothesis import example, given, settings
from hypothesis import strategies as some

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from culm.serve.board import metrics as module
from culm.serve.board.metrics import Metrics, parse
from culm.serve.board.reduce import Curve, merged, plain, reduced, smoothed, within
from culm.serve.board.table import Table, forward_rows


def read_all(path: Path) -> Metrics:
    found = Metrics(path)
    while found.read():
        pass
    return found


def columns(metrics: Metrics) -> dict[str, list[float | None]]:
    """Plain values; nan, which is unequal to itself, as None."""
    table = metrics.table
    return {
        name: [None if math.isnan(value) else value for value in table[name].tolist()]
        for name in sorted(table.names)
    }


NUMBER = some.one_of(
    some.floats(-1e9, 1e9), some.integers(-(10**6), 10**6), some.none(), some.booleans(),
    some.text(max_size=3),
)  # fmt: skip
LINE = some.builds(
    lambda step, values: json.dumps({"step": step, **values}),
    some.integers(0, 30),
    some.dictionaries(some.sampled_from(["loss", "rate", "load.0", "skipped"]), NUMBER),
)
BROKEN = some.sampled_from(["{", "", "[1]", '{"loss": 1.0}', '{"step": "3"}', "nonsense\x00"])
LINES = some.lists(some.one_of(LINE, LINE, LINE, BROKEN), max_size=30)


@settings(max_examples=100, deadline=None)
@given(LINES, some.lists(some.integers(0, 2000), max_size=5))
@example(['{"step": 0, "loss": null}', '{"step": 0, "loss": false}'], [26])
@example(['{"loss": 1.0}', '{"step": 0}', '{"step": 0, "loss": false}'], [26])
def test_reading_as_it_grows_is_reading_at_once(tmp_path_factory, lines, cuts):
    """Wherever the file ended when it was read, in the middle of a line too, and steps repeat."""
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(b"")
    growing = Metrics(path)
    for end in sorted({min(cut, len(content)) for cut in cuts} | {len(content)}):
        with path.open("ab") as file:
            file.write(content[file.tell() : end])
        while growing.read():
            pass
    at_once = read_all(path)
    assert columns(growing) == columns(at_once)
    assert growing.damaged == at_once.damaged


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_lines_are_read_one_by_one_as_they_are_in_bulk(lines):
    """What pyarrow refuses as a block is read line by line, with the same result."""
    text = "".join(f"{line}\n" for line in lines).encode()
    bulk, damaged = parse(text)
    table, lost = Table(), 0
    for line in lines:
        one, bad = module._of_lines([line.encode()])
        table.append(one)
        lost += bad
    whole = Table()
    whole.append(bulk)
    assert damaged == lost
    assert whole.rows == table.rows
    for name in whole.names:
        known = table[name] if name in table.names else np.full(table.rows, np.nan)
        np.testing.assert_allclose(whole[name], known, rtol=1e-15)


def test_half_a_line_waits_for_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    found = read_all(path)
    assert columns(found) == {"loss": [2.0], "step": [1.0]}
    with path.open("a") as file:
        file.write('ss": null}\n')
    assert not found.read()
    assert columns(found) == {"loss": [2.0, None], "step": [1.0, 2.0]}
    assert found.damaged == 0


def test_a_broken_line_costs_itself(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"st\n{"step": 3, "loss": 1.0}\n')
    found = read_all(path)
    assert (columns(found)["step"], found.damaged) == ([1.0, 3.0], 1)


def test_later_steps_replace_earlier_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": step, "loss": 1.0} for step in range(1, 9)])
    found = read_all(path)
    write_lines(path, [{"step": step, "loss": 2.0} for step in (4, 5)], "a")
    found.read()
    assert columns(found) == {"step": [1, 2, 3, 4, 5], "loss": [1, 1, 1, 2, 2]}


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_that_a_resumed_run_cut_is_read_again(tmp_path, replace):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "new"
    write_lines(path, steps(20))
    found = read_all(path)
    write_lines(other if replace else path, steps(5, rate2=1.0))
    if replace:
        os.replace(other, path)
    found.read()
    assert columns(found) == columns(read_all(path))
    assert found.table.rows == 5
    path.unlink()
    found.read()
    assert found.table.rows == 0


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, steps(100))
    found = read_all(path)
    seen = []
    monkeypatch.setattr(module, "parse", lambda text: (seen.append(text), parse(text))[1])
    write_lines(path, steps(1, first=101), "a")
    found.read()
    assert [len(text.splitlines()) for text in seen] == [1]


def test_a_long_file_shows_a_sample_until_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, steps(30_000))
    monkeypatch.setattr(module, "LONG", 1 << 20)
    monkeypatch.setattr(module, "BLOCK", 1 << 20)
    found = Metrics(path)
    assert found.read()
    assert not found.complete
    assert 0 < found.share < 1
    first = found.table["step"]
    assert first[0] == 1
    assert first[-1] == 30_000
    assert 1000 < len(first) < 2000
    while found.read():
        pass
    assert found.complete
    assert found.share == 1
    assert found.table["step"].tolist() == list(range(1, 30_001))


def test_rows_before_a_later_one_of_their_step_go():
    assert forward_rows(np.array([1, 2, 3, 2, 3, 4.0])).tolist() == [1, 0, 0, 1, 1, 1]
    assert forward_rows(np.empty(0)).tolist() == []


# -- reduction

VALUES = some.lists(some.one_of(some.floats(-1e6, 1e6), some.just(math.nan)), max_size=300)


@settings(max_examples=200, deadline=None)
@given(VALUES, some.integers(2, 40), some.booleans())
def test_reduction_keeps_extremes_ends_and_order(values, buckets, log):
    curve = plain(np.arange(1.0, len(values) + 1), np.array(values, float))
    found = reduced(curve, buckets, log)
    assert len(found.x) <= buckets or len(curve.x) <= buckets
    if not len(curve.x):
        assert not len(found.x)
        return
    assert found.low.min() == curve.low.min()
    assert found.high.max() == curve.high.max()
    assert found.x[-1] == curve.x[-1]
    assert (np.diff(found.x) > 0).all()
    assert (found.low <= found.mean + 1e-6).all()
    assert (found.mean <= found.high + 1e-6).all()


def test_a_spike_of_one_step_in_a_million_stays():
    values = np.ones(10**6)
    values[123_456] = 50
    found = reduced(smoothed(plain(np.arange(10.0**6), values), 0.1), 500)
    assert found.high.max() == 50
    assert abs(found.x[found.high.argmax()] - 123_456) < 2000


def test_smoothing_is_a_running_mean_that_leaves_the_extremes():
    curve = plain(np.arange(100.0), np.tile([0.0, 2.0], 50))
    found = smoothed(curve, 0.2)
    assert np.abs(found.mean[20:80] - 1).max() < 0.06
    assert (found.low == curve.low).all()
    assert smoothed(curve, 0) is curve


def test_a_part_reaches_one_point_beyond_its_ends():
    part = within(plain(np.arange(10.0), np.arange(10.0)), 3.5, 5.5)
    assert part.x.tolist() == [3, 4, 5, 6]


def test_members_of_a_family_are_a_band():
    x = np.arange(2.0)
    parts = [plain(x, np.array(values)) for values in ([1.0, 2.0], [3.0, 1.0])]
    found = Curve(*(part.tolist() for part in merged(parts)))
    assert found == Curve([0, 1], [2, 1.5], [1, 1], [3, 2])


# -- a million steps


@pytest.mark.slow
def test_a_million_steps_are_shown_in_two_seconds(tmp_path):
    """A sample of them; all of them a little later."""
    path = tmp_path / "metrics.jsonl"
    more = {"rate": 0.0003, "grad_norm": 0.51234567, "tokens_per_second": 201234.56789,
            "waiting": 0.00512345, "peak_bytes": 845135872.0, "mfu": 0.4123456789}  # fmt: skip
    end = json.dumps(more)[1:]
    with path.open("w") as file:
        file.writelines(
            f'{{"step": {step}, "loss": {8 / step}, "tokens": {step}000, "seconds": 0.5, {end}\n'
            for step in range(1, 10**6 + 1)
        )
    begun = time.process_time()
    found = Metrics(path)
    assert found.read()
    curve = reduced(plain(found.table["step"], found.table["loss"]), 500)
    assert time.process_time() - begun < 2
    assert (curve.x[0] < 10_000, curve.x[-1]) == (True, 10**6)
    while found.read():
        pass
    assert found.table.rows == 10**6
    begun = time.process_time()
    reduced(plain(found.table["step"], found.table["loss"]), 500)
    assert time.process_time() - begun < 1
