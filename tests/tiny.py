"""A tiny model and batches of fixed rows, for tests of objectives."""

import torch

from culm.batch import IGNORED, Batch, counts_of
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.experience import Experience

LENGTHS = (3, 9, 12, 5, 2, 7, 12, 4)


def model(seed: int = 0) -> Transformer:
    attention = GQA(heads=2, qk_norm="head")
    config = TransformerConfig(
        vocabulary=31, width=16, layers=2, context=12, attention=(attention,)
    )
    built = config.build(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return built


def rows(length: int = 12, metrics: dict | None = None) -> Batch:
    """Eight rows, each with as many learned targets as LENGTHS says, less one."""
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(31, (8, length), generator=chance)
    targets = torch.full((8, length), IGNORED)
    for row, count in enumerate(LENGTHS):
        targets[row, 1:count] = torch.randint(31, (count - 1,), generator=chance)
    positions = torch.arange(length).expand(8, length)
    lengths = torch.tensor(LENGTHS)
    counts = counts_of(targets, lengths)
    return Batch(tokens, targets, positions, lengths=lengths, counts=counts, metrics=metrics or {})


def experience(rewards: torch.Tensor, group: int, max_tokens: int = 1) -> Experience:
    """The rows with rewards, as sampled with log-probabilities of -1."""
    batch = rows(metrics={"reward": 0.25})
    behaviour = -(batch.targets >= 0).float()
    return Experience(batch, rewards, behaviour, group, max_tokens)
