"""Which tokens end a document, a turn and a generation: one answer for every source.

A list of ends that a file declares is the list. Names of well-known models are a guess, made only
where no list is declared: a name may mean something else, as `<|end|>` does in GPT-OSS, where it
ends a part of a turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from culm.config import SettingError
from culm.tokenizer.chat import token_name

# Names by which well-known models end a document and a turn, ours first.
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ENDS_OF_TURN = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")
HARMONY = ("<|return|>", "<|flush|>")
# A name that is no end in a vocabulary with all of these: reasoning, and HTML (as in llama.cpp).
NO_ENDS = (
    *(("<|end|>", {one, two}) for one in ("<|call|>", "<|calls|>") for two in HARMONY),
    ("</s>", {"<|tool_response>"}),
    ("</s>", {"<|plamo:eos|>"}),
)


class Ends(NamedTuple):
    """text: id after each document. turn: id after each chat message. stops: ids that end a
    generation, the other two among them."""

    text: int
    turn: int
    stops: frozenset[int]


def ends_of(
    vocabulary: Mapping[str, int],
    specials: Mapping[str, int],
    settings: Mapping[str, Any],
    declared: Iterable[int] = (),
) -> Ends:
    """The ends of a tokenizer.

    vocabulary: the id of every token, specials: of special ones. settings: content of
    `tokenizer_config.json`; its `eos_token` is an end, `end_of_text_id` is the end of a document.
    declared: the ids that end a generation, if a file lists them.

    Raises:
        SettingError: no token ends a text.
    """
    listed = list(declared)
    own = vocabulary.get(token_name(settings.get("eos_token")) or "")
    first = [id for id in (own, *listed[:1]) if id is not None]
    allowed = {*first, *listed} if listed else set(specials.values())
    text = settings.get("end_of_text_id")
    if text is None:
        text = _named(ENDS_OF_TEXT, specials, allowed, first)
    if text is None:
        raise SettingError(
            "tokenizer: no token ends a text; set eos_token in tokenizer_config.json, or "
            "eos_token_id in generation_config.json or config.json"
        )
    if type(text) is not int or text not in set(vocabulary.values()):
        raise SettingError(f"tokenizer: end_of_text_id: {text!r} is not a token id; remove it")
    turn = _named(ENDS_OF_TURN, specials, allowed, [text] if own is None else [own])
    assert turn is not None
    return Ends(text, turn, frozenset({text, turn, *first, *listed}))


def _named(
    names: Iterable[str], specials: Mapping[str, int], allowed: Collection[int], others: list[int]
) -> int | None:
    """The first of the names whose id is allowed, else the first of the others."""
    known = set(meant(specials))
    found = (specials[name] for name in names if name in known and specials[name] in allowed)
    return next(found, next(iter(others), None))


def meant(names: Collection[str]) -> list[str]:
    """The names without those that only look like an end next to the others."""
    present = set(names)
    return [name for name in names if not any(name == n and p <= present for n, p in NO_ENDS)]
