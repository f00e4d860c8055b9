"""Constraints on generated tokens, applied wherever a token is sampled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

# Ids that may come next; or (V,) bool, True where an id may, V being the model's vocabulary.
Allowed = Collection[int] | Tensor


class Constraint(Protocol):
    """A pure function from the tokens generated so far to those that may follow.

    failure: why it can say nothing more, which ends the request; None: it can.
    """

    @property
    def failure(self) -> str | None: ...

    def mask(self, output: Sequence[int]) -> Allowed:
        """Ids that may follow `output`; none: the answer is complete and the request ends.

        The engine asks about outputs that follow the rule, and about drafts, which may break it:
        what is given for those does not matter.
        """


@dataclass(frozen=True)
class OneOf:
    """The answer is one of these sequences of token ids.

    end: ids that may follow a complete sequence, such as the end of a turn; needed where one
    sequence starts with another. Without it the request ends with the last token of a sequence.

    Raises:
        ValueError: there is no sequence, one is empty, or `end` is needed.
    """

    sequences: tuple[tuple[int, ...], ...]
    end: frozenset[int] = frozenset()
    failure: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.sequences or not all(self.sequences):
            raise ValueError("constraint: OneOf needs sequences of at least one token")
        for long in self.sequences:
            if not self.end and any(long[: len(s)] == s for s in self.sequences if s != long):
                raise ValueError(
                    "constraint: one sequence of OneOf starts with another; give `end`, the ids "
                    "that may follow a complete one"
                )

    def mask(self, output: Sequence[int]) -> frozenset[int]:
        said, count = tuple(output), len(output)
        follow = {s[count] for s in self.sequences if len(s) > count and s[:count] == said}
        return frozenset(follow) | (self.end if said in self.sequences else frozenset())


def is_empty(allowed: Allowed) -> bool:
    """Whether nothing may follow."""
    return not bool(allowed.any()) if isinstance(allowed, Tensor) else not allowed


def check_first(constraint: Constraint, vocabulary: int) -> None:
    """ValueError if a constraint allows no first token, or one outside the vocabulary."""
    allowed = constraint.mask(())
    if is_empty(allowed):
        raise ValueError("constraint: it allows no first token")
    if isinstance(allowed, Tensor):
        outside = [vocabulary] if bool(allowed[vocabulary:].any()) else []
    else:
        outside = [token for token in allowed if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"constraint: token {outside[0]} is outside the vocabulary of {vocabulary}"
        )


def restrict(logits: Tensor, allowed: Sequence[Allowed | None]) -> Tensor:
    """A copy of logits (N, V), -inf where a row's token is not allowed.

    allowed: one for each row. Rows with None, or where nothing may follow, stay as they are.
    """
    logits = logits.clone()
    for row, ids in zip(logits, allowed, strict=True):
        if ids is None or is_empty(ids):
            continue
        if isinstance(ids, Tensor):
            row.masked_fill_(~ids.to(row.device), float("-inf"))
        else:
            kept = torch.tensor(sorted(ids), device=row.device)
            values = row[kept]
            row.fill_(float("-inf"))
            row[kept] = values
    return logits
