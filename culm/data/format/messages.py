"""Dialogues in all common shapes, as one: a list of messages with role and content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from culm.data.example import shape_of

Message = dict[str, Any]

# Role names of ShareGPT.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ROLES |= {"observation": "tool", "function": "tool"}
DIALOGUES = ("messages", "conversations")  # fields that hold a dialogue
HUMAN = re.compile(r"\n\n(Human|Assistant): ?")
END = "<|endoftext|>"  # some sets write it into the text; the tokenizer adds its own


def message_of(turn: Any) -> Message:
    """One turn: role and content as they are, ShareGPT's from and value renamed."""
    if not isinstance(turn, dict):
        raise ValueError(f"a message is a {type(turn).__name__}, not a role and a content")
    if "from" in turn and "value" in turn:
        return {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    if "role" not in turn:
        raise ValueError(f"a message has no role; {shape_of(turn)}")
    return {**turn, "role": ROLES.get(turn["role"], turn["role"])}


def question_of(record: dict[str, Any]) -> list[Message] | None:
    """The messages before the answer, in any known shape; None if there are none."""
    system = record.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    for key in (*DIALOGUES, "prompt"):
        if isinstance(record.get(key), list):
            return [*first, *map(message_of, record[key])]
    if isinstance(record.get("instruction"), str):
        text = "\n\n".join(filter(None, (record["instruction"], str(record.get("input") or ""))))
        return [*first, {"role": "user", "content": text}]
    if isinstance(record.get("prompt"), str):
        return [*first, {"role": "user", "content": record["prompt"]}]
    return None


def answer_of(value: Any) -> list[Message] | None:
    """An answer as messages: a string, one message, or the end of a dialogue."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value.removesuffix(END)}]
    if isinstance(value, dict):
        return [message_of(value)]
    return list(map(message_of, value)) if isinstance(value, list) else None


def dialogue_of(record: dict[str, Any]) -> list[Message]:
    """A complete dialogue.

    Reads `messages`, `conversations` (ShareGPT), `instruction`/`input`/`output` and
    `prompt`/`completion`, each with an optional `system`.
    """
    question = question_of(record)
    if question and any(isinstance(record.get(key), list) for key in DIALOGUES):
        return question
    for key in ("output", "completion", "response"):
        answer = answer_of(record.get(key))
        if question is not None and answer is not None:
            return question + answer
    raise ValueError(
        "no dialogue in it (messages, conversations, instruction and output, or prompt and "
        f"completion); {shape_of(record)}"
    )


def transcript(text: str) -> Sequence[Message] | None:
    r"""A dialogue written as "\n\nHuman: ...\n\nAssistant: ..."; None for any other text."""
    empty, *turns = HUMAN.split(text)
    if empty or not turns:
        return None
    roles = ({"Human": "user", "Assistant": "assistant"}[name] for name in turns[::2])
    return [{"role": r, "content": t.strip()} for r, t in zip(roles, turns[1::2], strict=True)]
