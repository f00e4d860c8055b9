"""What the weights of messages say of a dialogue: which answers are learned."""

from __future__ import annotations

from typing import Any

import pytest

from culm.config import SettingError
from culm.data.format.chat import ChatFormat
from culm.tokenizer.tokenizer import Tokenizer

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
NOT_LEARNED = [
    {"weight": 0}, {"train": False}, {"training": False}, {"trainable": False}, {"loss": False},
    {"loss_mask": 0}, {"loss_weight": 0.0}, {"loss_scale": 0}, {"masked": True},
]  # fmt: skip


@pytest.mark.parametrize("off", NOT_LEARNED)
def test_the_weights_of_other_tools(off: Any, tokenizer: Tokenizer) -> None:
    [(key, value)] = off.items()
    for weighted, learned in ((off, "Yes<|end|>"), ({key: not value}, "Yes<|end|>Yes<|end|>")):
        record = {"messages": [U, {**A, **weighted}, {**U, **off}, A]}
        [example] = ChatFormat().encode(list(ChatFormat().contents(record)), tokenizer)
        pairs = zip(example.tokens, example.learned, strict=True)
        said = tokenizer.decode([id for id, wanted in pairs if wanted], specials=True)
        assert said == learned
        assert not example.unread


def test_weights_that_contradict_each_other_are_refused(prepared: Any) -> None:
    with pytest.raises(SettingError, match="weight 1 and train False contradict each other"):
        prepared([{"messages": [U, {**A, "weight": 1, "train": False}]}], ChatFormat())


@pytest.mark.parametrize("weight", [{"train": True}, {"weight": 1}])
def test_a_weight_of_a_message_that_is_not_learned_is_counted(prepared: Any, weight: Any) -> None:
    (key,) = weight
    manifest, _ = prepared([{"messages": [{**U, **weight}, A]}], ChatFormat())
    assert manifest.notes == {
        f"messages have the key {key!r}, which the chat template does not use": 1
    }
    off = dict.fromkeys(weight, 0)
    assert prepared([{"messages": [{**U, **off}, A]}], ChatFormat())[0].notes == {}
