"""The weights of messages, which say what of a dialogue is learned."""

from __future__ import annotations

from culm.tokenizer.template import Message

WEIGHTS = ("weight", "train")  # keys of a message that say whether it is learned


def is_learned(message: Message, index: int) -> bool:
    """Whether an answer is learned, by its `weight` (0 or 1) or `train` (true or false).

    Raises:
        ValueError: it is another value, or the two contradict each other.
    """
    given = {key: message[key] for key in WEIGHTS if message.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1) or isinstance(value, str):
            raise ValueError(f"messages[{index}].{key}: {value!r} is not 0 or 1")
    if len({bool(value) for value in given.values()}) > 1:
        both = " and ".join(f"{key} {value!r}" for key, value in given.items())
        raise ValueError(f"messages[{index}]: {both} contradict each other; remove one of them")
    return all(given.values())


def without_weights(message: Message) -> Message:
    """The message for a chat template.

    Only answers are learned: a weight of another message that asks for it stays, and is unread.
    """
    answer = message.get("role") == "assistant"
    return {k: v for k, v in message.items() if k not in WEIGHTS or (v and not answer)}
