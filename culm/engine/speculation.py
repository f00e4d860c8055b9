"""Speculative decoding: a drafter guesses tokens, the model reads them at once and decides.

known to the row       t t t t t t t
drafted                              d d
read in one step           [ t t t t d d ]
sampled by the model                 d x        the first is accepted, the second is not

Every position is sampled from the model itself, with the random number that belongs to it, and a
draft token is accepted if it equals what was sampled. So a request gets the tokens of plain
decoding, up to the rounding of matmuls of other shapes, whereas rejection sampling (arXiv
2211.17192) only preserves their distribution; in exchange, it accepts a little less. Quantised
keys and values (`cache`) are rounded again where a draft is rolled back, so texts may differ there.

A new way to draft is one file with a `Drafter` and one name here; a model is a drafter too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from culm.config import SettingError
from culm.engine.choose import Chooser
from culm.engine.draft_model import ModelDrafter
from culm.engine.drafter import Drafter, Window
from culm.engine.mtp import MTPDrafter
from culm.engine.ngram import NgramDrafter
from culm.engine.request import Running
from culm.model.cache import StateCache
from culm.model.transformer import Transformer

Speculation = Literal["mtp", "ngram"]


def drafter_for(
    model: Transformer, kind: Speculation | Transformer, slots: int, length: int
) -> Drafter:
    """The drafter of a name, or that with a smaller model, for one model.

    slots, length: as in `Engine`.

    Raises:
        SettingError: there is no such name, the model lacks what it needs, or a layer of a model
            keeps a state that cannot go back to an earlier token.
    """
    if isinstance(kind, Transformer):
        _check_cut(kind, "the draft model")
        drafter: Drafter = ModelDrafter(model, kind, slots, length)
    elif kind in get_args(Speculation):
        drafter = MTPDrafter(model) if kind == "mtp" else NgramDrafter(model)
    else:
        raise SettingError(f"speculate: {kind!r} is not one of {', '.join(get_args(Speculation))}")
    _check_cut(model, "this model")
    return drafter


def _check_cut(model: Transformer, name: str) -> None:
    if any(isinstance(layer, StateCache) for layer in model.cache(1, 1).layers):
        raise SettingError(
            f"speculate: a layer of {name} keeps a state, which cannot be rolled back to the "
            "token before a rejected one; leave it out"
        )


def draft(
    drafter: Drafter, rows: Sequence[Running], window: Window | None, chooser: Chooser
) -> None:
    """A new draft for every row. window: what the last step has read, as in `Drafter.draft`."""
    for row in rows:
        row.draft.clear()

    def choose(logits: Tensor) -> Tensor:
        before = [row.output + row.draft for row in rows]
        return chooser.sample(rows, logits[:, None], before)[0][:, 0]

    drafter.draft(rows, window, choose)
    for row in rows:  # the last token needs no draft: the model samples it itself
        del row.draft[max(row.request.max_tokens - len(row.output) - 1, 0) :]
