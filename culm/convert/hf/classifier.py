"""Reward models as the sequence classifiers of transformers, with one label: the reward.

There it is read at the last token whose id is not that of the padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from torch import Tensor

from culm.config import SettingError
from culm.model.transformer import TransformerConfig
from culm.tokenizer.tokenizer import Tokenizer

LABEL = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}  # which they count


def scalar_config(
    config: TransformerConfig, given: Mapping[str, Any], path: Path
) -> TransformerConfig:
    """The settings with a scalar head in place of logits. given: theirs.

    Raises:
        SettingError: it has several labels.
    """
    named = given.get("id2label")
    labels = len(named) if isinstance(named, dict) else given.get("num_labels", 2)  # their default
    if labels != 1:
        raise SettingError(
            f"{path}: id2label: a classifier of {labels!r} labels is not read here, only a reward "
            "model, which has one"
        )
    return config.model_copy(update={"head": "scalar", "tied": False})


def one_head(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights, with several scalar heads as their mean: a mean of linear layers is one."""
    for name, tensor in weights:
        several = name == "head.weight" and len(tensor) > 1
        yield name, tensor.float().mean(0, keepdim=True) if several else tensor


def padded_without_ends(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with another padding token, if its own also ends a turn.

    Raises:
        SettingError: no special token is left for it.
    """
    end, names = tokenizer.end_of_turn, {id: name for name, id in tokenizer.specials.items()}
    if tokenizer.generation_config["pad_token_id"] != end:
        return tokenizer
    others = (tokenizer.begin, tokenizer.end_of_text, *names)
    pad = next((id for id in others if id in names and id not in tokenizer.stop_ids), None)
    if pad is None:
        raise SettingError(
            f"tokenizer: pad_token: {names.get(end, end)} ends a turn too, and other libraries "
            "skip it as padding; add a special token for padding"
        )
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    settings = {**tokenizer.settings, "pad_token": names[pad]}
    generation = {**tokenizer.generation, "pad_token_id": pad}
    return Tokenizer(inner, settings, tokenizer.template, tokenizer.stop_ids, generation)
