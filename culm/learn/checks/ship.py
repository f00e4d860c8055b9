"""Exercises of lesson 11: quantised weights, drafts, texts in a stream, and calls of tools."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor

from culm.adapt.quantize import int4 as int4_library
from culm.adapt.quantize import int8 as int8_library
from culm.engine.choose import Chooser
from culm.engine.ngram import NgramIndex
from culm.engine.request import Request, Running
from culm.engine.sampling import Sampling
from culm.learn.dialogues import tokenizer
from culm.learn.exercise import Exercise, Mistake, normal
from culm.task.called import calls_in
from culm.text.reply import Reply


def int8(weight: Tensor) -> Tensor:
    return int8_library.nearest(weight)[0]


def int8_answer(weight: Tensor) -> Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    return (weight / scale).round().clamp(-127, 127) * scale


def _int8_one_scale(weight: Tensor) -> Tensor:
    scale = (weight.abs().max() / 127).bfloat16().float()
    return (weight / scale).round().clamp(-127, 127) * scale


def _int8_truncated(weight: Tensor) -> Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    return (weight / scale).trunc() * scale


def int4(weight: Tensor, group: int) -> Tensor:
    return int4_library.nearest(weight, group)


def int4_answer(weight: Tensor, group: int) -> Tensor:
    groups = weight.unflatten(1, (-1, group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (scale * (8 + (low / scale).round())).bfloat16().float()
    codes = (((groups - zero) / scale).round() + 8).clamp(0, 15)
    return ((codes - 8) * scale + zero).flatten(1)


def _int4_of_rows(weight: Tensor, group: int) -> Tensor:
    return int4_answer(weight, weight.shape[1])


def _int4_symmetric(weight: Tensor, group: int) -> Tensor:
    groups = weight.unflatten(1, (-1, group))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    return ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)


def drafted(tokens: list[int], count: int) -> list[int]:
    index = NgramIndex()
    index.extend(tokens)
    return list(index.continuation(count))


def drafted_answer(tokens: list[int], count: int) -> list[int]:
    for size in (4, 3, 2):
        last = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if len(tokens) > size and tokens[start : start + size] == last:
                return tokens[start + size : start + size + count]
    return []


def _drafted_first(tokens: list[int], count: int) -> list[int]:
    for size in (4, 3, 2):
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[-size:]:
                return tokens[start + size : start + size + count]
    return []


def _drafted_short(tokens: list[int], count: int) -> list[int]:
    for start in range(len(tokens) - 3, -1, -1):
        if tokens[start : start + 2] == tokens[-2:]:
            return tokens[start + 2 : start + 2 + count]
    return []


def accepted(draft: list[int], sampled: list[int]) -> list[int]:
    logits = torch.nn.functional.one_hot(torch.tensor(sampled), 50).float()
    row = Running.new(0, Request((1,), 100, Sampling(temperature=0)))
    row.draft.extend(draft)
    return [event.token for event in Chooser(50).accept([row], logits[None])]


def accepted_answer(draft: list[int], sampled: list[int]) -> list[int]:
    given = []
    for place, token in enumerate(sampled):
        given.append(token)
        if place == len(draft) or draft[place] != token:
            break
    return given


def _accepted_all(draft: list[int], sampled: list[int]) -> list[int]:
    return [a for a, b in zip(draft, sampled, strict=False) if a == b]


def _accepted_without_own(draft: list[int], sampled: list[int]) -> list[int]:
    return accepted_answer(draft, sampled)[:-1]


def shown(letters: str, stop: str) -> list[str]:
    reply, found = Reply(tokenizer(), [stop]), list[str]()
    for byte in letters.encode():
        found.append(reply.push(byte))
        if reply.stopped:
            return found
    return [*found, reply.finish()]


def shown_answer(letters: str, stop: str) -> list[str]:
    held, found = "", list[str]()
    for letter in letters:
        held += letter
        if held.endswith(stop):
            return [*found, held[: -len(stop)]]
        keep = next(n for n in range(len(stop) - 1, -1, -1) if held.endswith(stop[:n]))
        found.append(held[: len(held) - keep])
        held = held[len(held) - keep :]
    return [*found, held]


def _shown_at_once(letters: str, stop: str) -> list[str]:
    text, found = "", list[str]()
    for letter in letters:
        text += letter
        if text.endswith(stop):
            return [*found, ""]
        found.append(letter)
    return [*found, ""]


def called(reply: str) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for call in calls_in(reply)]


def called_answer(reply: str) -> list[tuple[str, dict[str, Any]]]:
    found = re.findall(r"<tool_call>(.*?)</tool_call>", reply, re.DOTALL)
    return [(call["name"], call["arguments"]) for call in map(json.loads, found)]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'
EXERCISES = (
    Exercise(
        "ship.int8",
        "Round each row to whole steps of its largest number / 127 (in bfloat16), and give the "
        "values of the steps.",
        int8,
        lambda g: [(normal(g, 4, 6),), (normal(g, 3, 5) * torch.tensor([[1.0], [50.0], [0.01]]),)],
        int8_answer,
        (
            Mistake("each row has its own scale.", _int8_one_scale),
            Mistake("round to the nearest step.", _int8_truncated),
        ),
    ),
    Exercise(
        "ship.int4",
        "For each group of inputs: 16 values from its minimum (0 at most) to its maximum (0 at "
        "least), with scale and zero in bfloat16; give the nearest values.",
        int4,
        lambda g: [(normal(g, 3, 64), 32), (normal(g, 2, 32).abs(), 32)],
        int4_answer,
        (
            Mistake("each group has its own scale.", _int4_of_rows),
            Mistake("the range goes from the minimum to the maximum.", _int4_symmetric),
        ),
    ),
    Exercise(
        "ship.drafted",
        "Find where the last 4 tokens (else 3, else 2) occurred before, the latest place; give up "
        "to `count` tokens that followed there.",
        drafted,
        lambda g: [([1, 2, 3, 4, 5, 9, 2, 3], 3), ([7, 8, 1, 7, 8, 2, 7, 8], 2), ([1, 2, 3], 4),
                   ([1, 2, 3, 4, 6, 9, 3, 4, 7, 1, 2, 3, 4], 1)],
        drafted_answer,
        (
            Mistake("take the latest place.", _drafted_first),
            Mistake("try the longest sequence first.", _drafted_short),
        ),
    ),
    Exercise(
        "ship.accepted",
        "Give the sampled tokens up to the first that differs from the draft, with that one.",
        accepted,
        lambda g: [([5, 6, 7], [5, 9, 7, 1]), ([5, 6], [5, 6, 7]), ([5], [4, 3]), ([], [2])],
        accepted_answer,
        (
            Mistake("the first difference ends the step.", _accepted_all),
            Mistake("the model's own token after the last accepted one is given too.",
                    _accepted_without_own),
        ),
    ),
    Exercise(
        "ship.shown",
        "Give after each letter what can be shown: hold back what may become the stop text, end "
        "before it, and at the end give the rest.",
        shown,
        lambda g: [("Yes.##No", "##"), ("a#b#", "##"), ("abc", "xy")],
        shown_answer,
        (
            Mistake("what was shown cannot be taken back.", _shown_at_once),
            Mistake("show what can be shown at once.",
                    lambda letters, stop: [letters.split(stop)[0]]),
        ),
    ),
    Exercise(
        "ship.called",
        "Read the JSON between the marks of each call; give names and arguments in order.",
        called,
        lambda g: [(CALL,), ("Well. " + CALL + CALL.replace("Rome", "Oslo"),), ("It rains.",)],
        called_answer,
        (
            Mistake("there may be several.", lambda reply: called_answer(reply)[:1]),
            Mistake("name and arguments are two things.",
                    lambda reply: [(name, {}) for name, _ in called_answer(reply)]),
        ),
    ),
)  # fmt: skip
