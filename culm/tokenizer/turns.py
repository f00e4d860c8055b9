"""The end of a turn of a model that is trained on dialogues."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from culm.log import say
from culm.tokenizer.ends import meant
from culm.tokenizer.tokenizer import Tokenizer

CONTENT = "QZQ"  # an answer that no template contains


def with_turn_end(tokenizer: Tokenizer, source: str | Path) -> Tokenizer:
    """The tokenizer, with the token that ends a turn in its chat template among its stops.

    A base model often has a template whose end of a turn is not in its list of ends, since it never
    learned that token. A model that is trained on dialogues learns it, so it must stop there.
    source: of the tokenizer, for a message.
    """
    end = None if tokenizer.template is None else _turn_end(tokenizer)
    if end is None or end in tokenizer.stop_ids:
        return tokenizer
    name = tokenizer.decode([end], specials=True)
    say(
        f"{source}: its chat template ends a turn with {name}, which is not in its list of ends; "
        "a model trained from it also stops there."
    )
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    stops = {*tokenizer.stop_ids, end}
    return Tokenizer(inner, tokenizer.settings, tokenizer.template, stops, tokenizer.generation)


def _turn_end(tokenizer: Tokenizer) -> int | None:
    """The first special token after an answer; None if an end is learned without it.

    A question follows the answer: in some templates its mark is what ends a turn, as in GLM-4's.
    """
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": CONTENT}]
    try:
        tokenizer.chat.encode(messages)
        return None
    except ValueError:
        pass
    try:
        ids = tokenizer.chat.prompt([*messages, messages[0]])
    except ValueError:  # of a template that refuses this dialogue
        return None
    ends = {tokenizer.specials[name] for name in meant(tokenizer.specials)}
    places = (n for n in range(len(ids) + 1) if CONTENT in tokenizer.decode(ids[:n]))
    after = ids[next(places, len(ids)) :]
    return next((id for id in after if id in ends), None)
