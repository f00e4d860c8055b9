"""The bench measures what it says, on models so small that it takes no time."""

import json

import pytest
import torch

from culm.config import SettingError
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.verbs import bench
from culm.verbs.bench import Size, decoder_of, show_bench, trainer_of

CPU = torch.device("cpu")
MODEL = TransformerConfig(vocabulary=64, width=64, layers=1, context=16, attention=(GQA(heads=2),))
SMALL = Size(MODEL, rows=2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIZES", {"S": SMALL})
    monkeypatch.setattr(bench, "PROMPT", 4)
    monkeypatch.setattr(bench, "NEW", 6)


def test_sizes_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    counts = {
        letter: sum(p.numel() for p in size.model.build(device="meta").parameters())
        for letter, size in bench.SIZES.items()
    }
    assert counts["S"] == pytest.approx(26.4e6, rel=0.01)
    assert counts["T"] == pytest.approx(0.86e6, rel=0.06)
    assert counts["L"] == pytest.approx(134.5e6, rel=0.01)


def test_a_training_step_trains() -> None:
    step = trainer_of(SMALL, CPU, compiled=False)
    step()
    assert bench.seconds_of(step) > 0


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_decoding_can_be_repeated(weights: str) -> None:
    decode = decoder_of(SMALL, weights, 3, CPU)
    assert decode() > 0
    assert decode() > 0


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show_bench("decode", "S", rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("tokens/s" in line and "ms per step" in line for line in lines)
    assert all("1.00 x bf16" in line for line in lines[:2])
    assert all(" x bf16" in line for line in lines[2:])


@pytest.mark.parametrize(("what", "size"), [("train", "X"), ("sing", "S")])
def test_unknown_names_are_refused(what: str, size: str) -> None:
    with pytest.raises(SettingError, match=r"'X' is not one of|'sing' is neither"):
        show_bench(what, size)


def test_one_measurement_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_bench("decode", "S", 2, "int8", json=True, rounds=1)
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["what"], found["size"]) == ("decode", "S")
    assert (found["rows"], found["weights"]) == (2, "int8")
    assert found["tokens_per_second"] == pytest.approx(2 / found["seconds_per_step"], rel=1e-2)
    with pytest.raises(SettingError, match="rows: only of decode"):
        show_bench("train", "S", 2)
    with pytest.raises(SettingError, match="'int3' is not one of bf16, int8, int4"):
        show_bench("decode", "S", weights="int3")


@pytest.mark.parametrize("what", ["train", "decode"])
def test_it_says_at_once_that_it_takes_time(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(bench, "trainer_of", stop)
    monkeypatch.setattr(bench, "decoder_of", stop)
    with pytest.raises(Stop):
        show_bench(what, "S", rounds=1)
    assert f"Measuring {what}, model S: the first result takes up to" in capsys.readouterr().err
