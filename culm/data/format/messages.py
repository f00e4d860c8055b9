"""Dialogues in all common shapes, as one: a list of messages with role and content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from culm.data.example import Dialogue
from culm.source.record import LeftOut, kind_of_value, of_kind, shape_of
from culm.tokenizer.message import KNOWN_ROLES, content_of

Message = dict[str, Any]

# Other names of roles: ShareGPT's, and those of other sets.
ROLES = {"human": "user", "observation": "tool", "function": "tool"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "ai", "model"), "assistant")
CALL = "function_call"  # a role of ShareGPT: the assistant calls a function
DIALOGUES = ("messages", "conversations")  # fields that hold a dialogue
ANSWERS = ("output", "completion", "response")
HUMAN = re.compile(r"\n\n(Human|Assistant): ?")
END = "<|endoftext|>"  # some sets write it into the text; the tokenizer adds its own


def message_of(turn: Any) -> Message:
    """One turn: role and content as they are, ShareGPT's from and value renamed."""
    if not isinstance(turn, dict):
        raise ValueError(f"a message is {kind_of_value(turn)}, not a role and a content")
    if "from" in turn and "value" in turn:
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        turn = {"role": turn["from"], "content": turn["value"], **rest}
    if "role" not in turn:
        raise ValueError(f"a message has no role; {shape_of(turn)}")
    role = turn["role"]
    if not isinstance(role, str):
        raise ValueError(f"the role of a message is {kind_of_value(role)}, not text")
    name = role.strip().lower()
    if name == CALL:
        return _called(turn)
    return {**turn, "role": name if name in KNOWN_ROLES else ROLES.get(name, role)}


def _called(turn: Message) -> Message:
    """A call, or several, that is written as JSON in the content, as a turn of the assistant.

    Raises:
        ValueError: it is something else.
    """
    try:
        calls = json.loads(turn["content"])
        calls = calls if isinstance(calls, list) else [calls]
        made = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"a message of the role {CALL!r} is not a call in JSON, as "
            '{"name": "weather", "arguments": {"town": "Rome"}}'
        ) from None
    rest = {key: value for key, value in turn.items() if key != "content"}
    calls = [{"type": "function", "function": call} for call in made]
    return {**rest, "role": "assistant", "tool_calls": calls}


def question_of(record: dict[str, Any], prompt: str = "prompt") -> list[Message] | None:
    """The messages before the answer, in any known shape; None if there are none.

    prompt: the field of a question that is a text or a list of messages.
    """
    for key in (*DIALOGUES, prompt):
        if (turns := of_kind(record, key, list)) is not None:
            return with_system(record, list(map(message_of, turns)))
    asked = of_kind(record, "instruction", str)
    if asked is not None:
        more = of_kind(record, "input", str | int | float)
        asked = "\n\n".join(filter(None, (asked, str(more or ""))))
    else:
        asked = of_kind(record, prompt, str)
    if asked is None:
        return None
    return with_system(record, [*_history(record), {"role": "user", "content": asked}])


def with_system(record: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after the system message of the record.

    Where they begin with another one, that of the record counts as not read.
    """
    first = messages[0] if messages else {}
    if first.get("role") == "system":
        if first.get("content") == dict.get(record, "system"):
            record.get("system")  # it says the same
        return messages
    system = of_kind(record, "system", str)
    return [{"role": "system", "content": system}, *messages] if system else messages


def _history(record: dict[str, Any]) -> list[Message]:
    """Alpaca's earlier turns: a list of questions with their answers."""
    turns = dict.get(record, "history")  # something else of this name counts as not read
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        return []
    return [
        {"role": role, "content": text}
        for turn in record["history"]
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)
    )


def answer_of(value: Any) -> list[Message] | None:
    """An answer as messages: a string, one message, or the end of a dialogue."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value.removesuffix(END)}]
    if isinstance(value, dict):
        return [message_of(value)]
    return list(map(message_of, value)) if isinstance(value, list) else None


def with_answer(
    record: dict[str, Any], question: Sequence[Message] | None, answer: Sequence[Message]
) -> list[Message] | None:
    """The dialogue of a question and its answer, which may be a complete dialogue that repeats the
    question, or holds the only one; None if there is no question.
    """
    if question is not None:
        return list(answer) if _begins(answer, question) else [*question, *answer]
    if len(answer) > 1:
        return with_system(record, list(answer))
    whole = transcript(content_of(answer[0]))
    return None if whole is None else with_system(record, list(whole))


def _begins(answer: Sequence[Message], question: Sequence[Message]) -> bool:
    """Whether an answer is a dialogue that begins with the question."""

    def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
        return [(one["role"], str(one.get("content") or "").strip()) for one in messages]

    return len(answer) > len(question) and said(answer[: len(question)]) == said(question)


def asked_in(messages: Sequence[Message]) -> list[Message]:
    """What stands before the first answer."""
    return list(takewhile(lambda one: one["role"] != "assistant", messages))


def dialogue_of(record: dict[str, Any]) -> Dialogue:
    """A complete dialogue.

    Reads `messages`, `conversations` (ShareGPT), `instruction`/`input`/`output` and
    `prompt`/`completion`, each with an optional `system` and `tools`, the last two with earlier
    turns in `history`; and `turns` of a user with the answers in `reference` (MT-Bench).

    Raises:
        LeftOut: turns of a user have no answers.
        ValueError: there is no dialogue in it.
    """
    if (asked := of_kind(record, "turns", list)) is not None:
        return Dialogue(_answered(record, asked))
    question = question_of(record)
    if question and any(isinstance(dict.get(record, key), list) for key in DIALOGUES):
        return Dialogue(question, tools_of(record))
    for key in ANSWERS:
        answer = answer_of(of_kind(record, key, str | dict | list))
        if question is not None and answer is not None:
            whole = with_answer(record, question, answer)
            assert whole is not None
            return Dialogue(whole, tools_of(record))
    raise ValueError(
        "no dialogue in it (messages, conversations, instruction and output, or prompt and "
        f"completion); {shape_of(record)}"
    )


def dialogues_of(record: dict[str, Any]) -> Iterator[Dialogue]:
    """The dialogue of a record, or that of each of its `instances` (Self-Instruct): an `input` and
    an `output` for the `instruction` that they share.
    """
    instances = of_kind(record, "instances", list)
    if instances is None:
        yield dialogue_of(record)
        return
    if not instances or not all(isinstance(one, dict) for one in instances):
        raise ValueError(f"instances: not a list of inputs and outputs; {shape_of(record)}")
    known: tuple[str, ...] = ("instruction", "system")
    shared = {key: record[key] for key in known if key in record}
    for one in instances:
        if odd := one.keys() - {"input", *ANSWERS}:
            raise ValueError(f"instances: {min(odd)!r} is not an input or an output")
        yield dialogue_of({**shared, **one})


def _answered(record: dict[str, Any], asked: list[Any]) -> list[Message]:
    """Questions of a user, each with its answer."""
    answers = record.get("reference")
    if not answers:
        raise LeftOut("dialogues have questions without answers and are left out")
    if not isinstance(answers, list) or len(answers) != len(asked):
        raise ValueError(f"turns and reference: not an answer to each question; {shape_of(record)}")
    texts = [text for both in zip(asked, answers, strict=True) for text in both]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"turns and reference: not texts; {shape_of(record)}")
    roles = ("user", "assistant") * len(asked)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def refuse_label(record: dict[str, Any]) -> None:
    """Fine-tuning learns every answer, so it would learn one that a label calls bad.

    Raises:
        ValueError: the record has such a label, as in data for KTO.
    """
    if dict.get(record, "label") in (True, False):  # 0 and 1 too
        raise ValueError(
            "its answer has a label, and fine-tuning would learn bad answers like good ones; keep "
            "the records whose label is true, without the label, or learn from all with culm train "
            "kto"
        )


def tools_of(record: dict[str, Any]) -> list[Any] | None:
    """The tools that the assistant may call: a list, also one that is written as JSON."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"tools: not readable as JSON: {error}") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"tools: not a list, but {kind_of_value(tools)}")
    return tools


def transcript(text: str) -> Sequence[Message] | None:
    r"""A dialogue written as "\n\nHuman: ...\n\nAssistant: ..."; None for any other text."""
    empty, *turns = HUMAN.split(text)
    if empty or not turns:
        return None
    roles = ({"Human": "user", "Assistant": "assistant"}[name] for name in turns[::2])
    return [{"role": r, "content": t.strip()} for r, t in zip(roles, turns[1::2], strict=True)]
