"""Bits per byte: of a model that knows nothing, and however the text is laid out."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from culm.batch import IGNORED, Batch
from culm.eval.perplexity import Prediction, predict
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.bytes import Bytes

TOKENIZER = Bytes().build()  # byte 0 ends a document
TEXTS = ["The fox met a crow.", "Über", "x", "東京 und noch mehr"]


@dataclass(frozen=True)
class Given:
    batches: list[Batch]

    def sample(self, targets: int) -> Iterator[Batch]:
        return iter(self.batches)


def model(uniform: bool = False) -> Transformer:
    config = TransformerConfig(
        vocabulary=256, width=32, layers=2, context=96, attention=(GQA(heads=2),), tied=False
    )
    built = config.build(seed=1).eval()
    if uniform:
        torch.nn.init.zeros_(built.head.weight)
    return built


def separate() -> Given:
    """A row for each text, filled up."""
    rows = [[0, *TOKENIZER.encode(text), 0] for text in TEXTS]
    longest = max(map(len, rows)) - 1
    tokens = torch.full((len(rows), longest), 7)
    targets = torch.full((len(rows), longest), IGNORED)
    for place, row in enumerate(rows):
        tokens[place, : len(row) - 1] = torch.tensor(row[:-1])
        targets[place, : len(row) - 1] = torch.tensor(row[1:])
    positions = torch.arange(longest).expand_as(tokens)
    return Given([Batch(tokens[:1], targets[:1], positions[:1]),
                  Batch(tokens[1:], targets[1:], positions[1:])])  # fmt: skip


def packed() -> Given:
    """All texts in one row."""
    rows = [torch.tensor([0, *TOKENIZER.encode(text), 0]) for text in TEXTS]
    documents = [torch.full((len(row) - 1,), n, dtype=torch.int32) for n, row in enumerate(rows)]
    parts = (
        [row[:-1] for row in rows], [row[1:] for row in rows],
        [torch.arange(len(row) - 1) for row in rows], documents,
    )  # fmt: skip
    return Given([Batch(*(torch.cat(part)[None] for part in parts))])


@pytest.mark.parametrize("rows", [separate(), packed()], ids=["separate", "packed"])
def test_a_uniform_model_over_bytes_needs_eight_bits_for_each(rows: Given) -> None:
    found = predict(model(uniform=True), rows, TOKENIZER, 1000)
    assert found.bits_per_byte == pytest.approx(8, abs=1e-6)
    assert found.perplexity == pytest.approx(256, rel=1e-6)
    assert found.tokens == found.bytes == sum(len(text.encode()) for text in TEXTS)


def test_packed_equals_separate() -> None:
    one, other = (predict(model(), rows, TOKENIZER, 1000) for rows in (separate(), packed()))
    assert one.nats == pytest.approx(other.nats, rel=1e-6)
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes)


def test_nothing_to_score_is_an_error() -> None:
    row = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="the held-out split contains no scorable tokens"):
        predict(model(), Given([Batch(row, row, row)]), TOKENIZER, 5)


def test_units() -> None:
    found = Prediction(nats=20 * 0.6931471805599453, tokens=5, bytes=10)
    assert found.bits_per_byte == pytest.approx(2)
    assert found.perplexity == pytest.approx(16)
