"""The weights of messages, which say what of a dialogue is learned."""

from __future__ import annotations

from culm.tokenizer.message import Message, keys_of_parts

# Keys of a message that say whether it is learned: OpenAI's, and those of other tools.
WEIGHTS = (
    "weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "loss_scale",
)  # fmt: skip
MASKED = "masked"  # the opposite
UNCLEAR = ("mask", "train_detail")  # of which 1 may mean either, or a part of the message


def is_learned(message: Message, index: int) -> bool:
    """Whether an answer is learned, by its `weight` (0 or 1), `train` (true or false) or the like.

    Raises:
        ValueError: it is another value, the key has no clear meaning, or two contradict each other.
    """
    for key in UNCLEAR:
        if message.get(key) is not None:
            raise ValueError(
                f"messages[{index}]: it is not clear what {key!r} says of the loss; write weight 0 "
                "or 1 in its place"
            )
    if parts := keys_of_parts(message) & {*WEIGHTS, MASKED, *UNCLEAR}:
        raise ValueError(
            f"messages[{index}].content: a part with {min(parts)!r} is not learned or masked by "
            "itself; give the whole message a weight"
        )
    given = {key: message[key] for key in (*WEIGHTS, MASKED) if message.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1) or isinstance(value, str):
            raise ValueError(f"messages[{index}].{key}: {value!r} is not 0 or 1")
    wanted = {_wants(key, value) for key, value in given.items()}
    if len(wanted) > 1:
        both = " and ".join(f"{key} {value!r}" for key, value in given.items())
        raise ValueError(f"messages[{index}]: {both} contradict each other; remove one of them")
    return all(wanted)


def without_weights(message: Message) -> Message:
    """The message for a chat template.

    Only answers are learned. A weight that asks to learn another message stays in it, unread.
    """
    answer, keys = message.get("role") == "assistant", {*WEIGHTS, MASKED}
    return {k: v for k, v in message.items() if k not in keys or (not answer and _wants(k, v))}


def _wants(key: str, value: object) -> bool:
    """Whether a weight asks for a message to be learned."""
    return bool(value) != (key == MASKED)
