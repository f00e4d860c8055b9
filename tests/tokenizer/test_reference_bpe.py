"""The BPE in plain Python, against published merges and the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.tokenizer.alphabet import spelt
from culm.tokenizer.reference_bpe import ReferenceBPE, merged, oldest
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

FIXTURES = "tokenizers/cs336"


def test_merges_of_the_course(shared: Callable[[str], Path]) -> None:
    """Stanford's CS336: the corpus, 500 tokens, one special token; larger bytes win a tie."""
    lines = shared(f"{FIXTURES}/train-bpe-reference-merges.txt").read_text().splitlines()
    wanted = [tuple(map(spelt, line.split(" "))) for line in lines]
    text = shared(f"{FIXTURES}/corpus.en").read_text()
    found = ReferenceBPE.train(text.split("<|endoftext|>"), len(wanted))
    assert found.merges == wanted
    vocabulary = json.loads(shared(f"{FIXTURES}/train-bpe-reference-vocab.json").read_text())
    assert {spelt(name) for name in vocabulary if name != "<|endoftext|>"} == set(found.pieces)


def library_merges(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    return [(spelt(a), spelt(b)) for a, b in json.loads(tokenizer.json)["model"]["merges"]]


@pytest.mark.parametrize("pattern", ["gpt2", "qwen2", "llama3"])
def test_the_merges_of_the_library(pattern: str, shared: Callable[[str], Path]) -> None:
    text = shared(f"{FIXTURES}/corpus.en").read_text()[:60_000]
    trained = BPE(vocabulary=500, pattern=pattern, chat=False).build([text])
    wanted = library_merges(trained)
    found = ReferenceBPE.train([text], len(wanted), pattern, oldest, min_frequency=2)
    assert len(wanted) > 200
    assert found.merges == wanted
    for sample in (text[:2000], "It's 1234, isn't it?\n\n  東京 🙂", "<|endoftext|>"):
        ours = [found.pieces[id] for id in found.encode(sample)]
        assert ours == [trained.bytes_of(id) for id in trained.encode(sample)]


def test_gpt2_by_its_merges(shared: Callable[[str], Path]) -> None:
    gpt2 = Tokenizer.load(shared("tokenizers/gpt2"))
    reference = ReferenceBPE(library_merges(gpt2))
    text = shared(f"{FIXTURES}/german.txt").read_text()
    wanted = [gpt2.bytes_of(id) for id in gpt2.encode(text)]
    assert [reference.pieces[id] for id in reference.encode(text)] == wanted


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=50, deadline=None)
def test_nothing_is_lost(text: str) -> None:
    reference = ReferenceBPE.train(["the cat, the hat, the mat"], 10)
    assert reference.decode(reference.encode(text)) == text


def test_merging_is_from_the_left() -> None:
    assert merged([b"a", b"a", b"a"], (b"a", b"a")) == [b"aa", b"a"]
    few = ReferenceBPE.train(["ab ab"], 50)
    assert few.merges[0] == (b"a", b"b")
    assert len(few.merges) == 2  # no pair is left
