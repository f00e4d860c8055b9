"""The share of words at whose start a patch ends, as `bench/bytes.py` counts it."""

import sys
from pathlib import Path

import pytest
import torch
from patch_models import TEXT, patch_model

from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import bytes as bench

IDS = list(b"ab  cd e")


@pytest.mark.parametrize(
    ("ends", "hits"),
    [
        ("........", 0),
        ("...##...", 1),  # the space before a word and its first byte: one word
        ("....#.#.", 2),  # one convention for one word and the other for another
        ("..#..#..", 0),  # the first of two spaces, and the end of a word
        ("########", 2),
    ],
)
def test_a_word_counts_once_by_its_first_byte_or_the_space_before_it(ends: str, hits: int) -> None:
    assert bench.matched(IDS, torch.tensor([one == "#" for one in ends])) == hits


def test_random_ends_have_the_score_that_is_named_for_them(monkeypatch) -> None:
    chance = torch.Generator().manual_seed(0)
    model = LanguageModel(patch_model("megabyte"), Bytes(specials=True).build([]))
    monkeypatch.setattr(
        model.model, "ends", lambda tokens: torch.rand(tokens.shape, generator=chance) < 0.25
    )
    found = bench.word_starts(model, [TEXT.decode()] * 400)
    assert found["bytes_per_patch"] == pytest.approx(4, rel=0.05)
    assert found["word_f1"] == pytest.approx(found["random_f1"], rel=0.03)
