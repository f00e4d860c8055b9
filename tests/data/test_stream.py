"""A stream: the same batches for any number of ranks and processes, and an exact continuation."""

import json
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections import Counter, deque
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.batch import IGNORED
from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.stream.batches import Lane, StreamBatches
from culm.data.stream.process import Encoded, Reading, encode
from culm.data.stream.settings import StreamConfig
from culm.parallel.ranks import Ranks
from culm.source import open_source

ROWS, CONTEXT, DOCUMENTS = 4, 24, 60


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "text.jsonl"
    lines = [{"text": f"story {n}: the fox jumps. " * (n % 7 + 1)} for n in range(DOCUMENTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def stream(file, tokenizer):
    """Makes streams, and ends their processes."""
    made = []

    def make(ranks=Ranks(), micro=ROWS, workers=1, shuffle=32, path=file, invalid="error"):
        share = ROWS // ranks.count
        lanes = range(ranks.rank * share, (ranks.rank + 1) * share)
        source = open_source(str(path), invalid=invalid)
        reading = Reading(source, DocumentFormat(), invalid, 3, shuffle, lanes)
        some = StreamConfig(workers=workers, prefetch=2, shuffle=shuffle)
        made.append(
            StreamBatches(reading, tokenizer, some, CONTEXT, ROWS, micro, (str(path),), ranks)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def rows_of(batches):
    return [row for batch in batches for row in batch.tokens.tolist()]


def test_every_token_is_a_target_once_in_each_epoch(stream, file, tokenizer) -> None:
    """But the first of its document; each document is read once before one is read again."""
    batches, learned = stream(), Counter()
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    whole = sum(len(tokenizer.encode(text)) for text in texts)  # and an end of text, less a first
    for number in range(whole // (ROWS * CONTEXT) - 2):
        [batch] = batches.step(number)
        assert batch.tokens.shape == (ROWS, CONTEXT)
        kept = batch.targets[batch.targets != IGNORED].tolist()
        learned.update(kept)
    assert 0.8 * whole < learned.total() <= whole
    assert learned[tokenizer.end_of_text] <= DOCUMENTS


def test_ranks_workers_and_micro_batches_only_divide_a_step(stream) -> None:
    whole = stream()
    steps = [rows_of(whole.step(number)) for number in range(12)]
    parts = [stream(Ranks(rank, 2, writer=not rank), micro=1, workers=2) for rank in range(2)]
    for number, rows in enumerate(steps):
        assert [row for part in parts for row in rows_of(part.step(number))] == rows
    assert {part.fingerprint for part in parts} == {whole.fingerprint}


def test_nothing_of_a_stream_lives_on_when_it_is_closed(stream) -> None:
    before = set(threading.enumerate())
    batches = stream(workers=2)
    batches.step(0)
    assert set(threading.enumerate()) - before
    batches.close()
    assert not set(threading.enumerate()) - before


class Pair(Ranks):
    """Both ranks of two, one after the other: `gather` sees what the other one left."""

    left: ClassVar[dict] = {}

    def gather(self, value):
        self.left[self.rank] = value
        return list(self.left.values())


def test_a_stream_continues_exactly_from_integers(stream) -> None:
    """Also in another epoch, with other workers, and where a document is cut."""
    whole = stream()
    steps, states = [], {}
    for number in range(60):
        steps.append(rows_of(whole.step(number)))
        states[number + 1] = whole.state(number + 1)
    assert int(states[60]["mark"][1]) >= 1  # the second epoch
    for start, workers in ((1, 1), (23, 2), (57, 1)):
        assert all(not value.is_floating_point() for value in states[start].values())
        again = stream(workers=workers)
        again.restore(start, states[start])
        assert [rows_of(again.step(n)) for n in range(start, 60)] == steps[start:]
        again.close()


def test_the_state_of_ranks_is_that_of_one(stream) -> None:
    whole = stream()
    for number in range(9):
        whole.step(number)
    parts = [stream(Pair(rank, 2, writer=not rank)) for rank in range(2)]
    for part in parts:
        for number in range(9):
            part.step(number)
    parts[0].state(9)
    found, wanted = parts[1].state(9), whole.state(9)
    assert found["lanes"].tolist() == wanted["lanes"].tolist()
    again = stream()
    again.restore(9, found)
    assert rows_of(again.step(9)) == rows_of(whole.step(9))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=12),
    st.integers(2, 9),
)
def test_rows_of_a_lane_are_its_documents_end_to_end(sizes, context) -> None:
    """As `wrapped`, but that a row begins where the one before ended with its document."""
    documents, start = [], 0
    for number, parts in enumerate(sizes):
        tokens = np.arange(start, start + sum(parts), dtype=np.uint32)
        documents.append(Encoded(0, number, tokens, np.cumsum(parts)))
        start += sum(parts)
    ends = [0, *np.cumsum([size for parts in sizes for size in parts]).tolist()]
    lane, targets, places = Lane(), [], []
    for one in documents:
        lane.add(one)
    while lane.ready >= context:
        places.append((lane.document, lane.skip))
        tokens, segments = lane.take(context)
        assert len(tokens) == context
        for begin, end in segments:
            part = tokens[begin:end].tolist()
            assert any(a <= part[0] and part[-1] < b for a, b in pairwise(ends))
            targets += part[1:]
    assert targets == sorted(set(targets))
    assert not set(targets) & set(ends)
    missing = set(range(targets[-1] if targets else 0)) - set(targets) - set(ends)
    assert not missing
    for document, skip in places[-2:]:  # a lane that continues there gives the same row
        again = Lane(document, skip)
        for one in documents:
            again.add(one)
        assert again.take(context)[0][0] == documents[document].tokens[skip]


@pytest.mark.parametrize("name", ["worker 1", "the reader"])
def test_a_killed_process_ends_the_run_within_seconds_by_its_name(stream, name) -> None:
    batches = stream(workers=2)
    batches.step(0)
    pid = batches.pool.pids[name]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    message = rf"{name} \(process {pid}\) ended with signal SIGKILL"
    with pytest.raises(SettingError, match=message):
        deque(map(batches.step, range(1, 10_000)), maxlen=0)
    assert time.monotonic() - began < 10


def test_a_worker_says_nothing_of_a_reader_that_was_killed_in_the_middle_of_a_block(
    monkeypatch,
) -> None:
    """The main process finds out which process ended, and how."""
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # it is for a process of its own
    (jobs, reader), (main, out) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
    os.write(reader.fileno(), struct.pack("!i", 1000) + b"half of it")
    reader.close()
    encode(DocumentFormat(), tokenizer=None, jobs=jobs, out=out)
    assert not main.poll()


def test_processes_wait_for_the_reader_of_their_text(stream, tmp_path) -> None:
    """Back-pressure: what is read ahead does not grow with the source."""
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "the fox jumps over the dog. " * 400}) + "\n"
    path.write_text(line * 3000)  # 33 MB
    batches = stream(path=path, workers=1, shuffle=8)
    batches.step(0)
    time.sleep(2.0)
    queued = batches.pool._queue.qsize()
    assert queued <= 2
    marks = len(batches._marks)
    time.sleep(0.5)
    assert batches.pool._queue.qsize() == queued
    assert len(batches._marks) == marks


def test_what_cannot_be_read_is_an_error_or_counted(stream, tmp_path, capsys) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "the fox jumps over it"}\n{"text": 3}\n' * 20)
    with pytest.raises(SettingError, match=r"bad\.jsonl: line 2: .*data\.invalid=skip"):
        stream(path=path).step(0)
    batches = stream(path=path, invalid="skip")
    for number in range(8):
        batches.step(number)
    said = " ".join(capsys.readouterr().err.split())
    assert "20 records cannot be read and are left out." in said
    assert "The source was read to its end, and begins again." in said
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " "}\n')
    with pytest.raises(SettingError, match=r"empty\.jsonl: nothing to read"):
        stream(path=empty).step(0)


def test_a_step_may_be_tried_and_others_left_out(stream) -> None:
    """A run tries its first step before it trains; after spikes it leaves some out."""
    every, some = stream(), stream()
    read = [every.step(number)[0].tokens for number in range(4)]
    assert torch.equal(some.step(0)[0].tokens, read[0])
    assert torch.equal(some.step(0)[0].tokens, read[0])
    assert torch.equal(some.step(3)[0].tokens, read[3])
    with pytest.raises(ValueError, match="step 1: a stream continues with step 4"):
        some.step(1)
