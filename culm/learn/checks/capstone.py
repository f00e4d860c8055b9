"""Exercises of lesson 12: time for each stage, and a client of the served model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from culm.learn.exercise import Exercise, Mistake
from culm.quickstart.quickstart import LEAST_STEPS, MARGIN
from culm.serve.http.protocol import ChatRequest

Shares = Mapping[str, float]


def shares(seconds: float, weights: Shares) -> dict[str, float]:
    """As the quickstart gives each stage its share of what is left."""
    found, left, names = {}, seconds, list(weights)
    for place, name in enumerate(names):
        found[name] = left * weights[name] / sum(weights[other] for other in names[place:])
        left -= found[name]
    return found


def shares_answer(seconds: float, weights: Shares) -> dict[str, float]:
    return {name: seconds * one / sum(weights.values()) for name, one in weights.items()}


def steps(seconds: float, step_seconds: float) -> int:
    """`culm.quickstart.quickstart`: with its margin and its minimum."""
    return max(LEAST_STEPS, int(seconds / step_seconds * MARGIN))


def steps_answer(seconds: float, step_seconds: float) -> int:
    return max(10, int(0.93 * seconds / step_seconds))


def request(model: str, question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "stream": True}
    ChatRequest.model_validate(body)  # what the server reads
    return body


def joined(lines: list[str]) -> str:
    """What a client shows, from the events of `culm.serve.http`."""
    said = ""
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            for choice in json.loads(line[6:])["choices"]:
                said += choice["delta"].get("content") or ""
    return said


def _joined_first(lines: list[str]) -> str:
    return next((joined([line]) for line in lines if joined([line])), "")


def _event(delta: dict[str, Any]) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]})


LINES = [
    _event({"role": "assistant", "content": ""}),
    "",
    _event({"content": "4"}),
    "",
    _event({"content": "2."}),
    _event({}),
    'data: {"choices": [], "usage": {"total_tokens": 9}}',
    "data: [DONE]",
]
WEIGHTS = {"pretrain": 0.22, "sft": 0.44, "rl": 0.34}
EXERCISES = (
    Exercise(
        "capstone.shares",
        "Divide the seconds by the weights of the stages.",
        shares,
        lambda g: [(600.0, WEIGHTS), (100.0, {"pretrain": 1.0, "sft": 3.0})],
        shares_answer,
        (
            Mistake(
                "the weights need not sum to 1.",
                lambda seconds, weights: {name: seconds * one for name, one in weights.items()},
            ),
            Mistake(
                "weights differ.",
                lambda seconds, weights: {name: seconds / len(weights) for name in weights},
            ),
        ),
        tolerance=1e-4,
    ),
    Exercise(
        "capstone.steps",
        "Give how many steps fit into 93 % of the seconds; 10 at least.",
        steps,
        lambda g: [(100.0, 0.5), (1.0, 0.5), (33.0, 0.21)],
        steps_answer,
        (
            Mistake(
                "leave a margin: other steps may take longer than the trial.",
                lambda seconds, step_seconds: max(10, int(seconds / step_seconds)),
            ),
            Mistake(
                "leave a margin of 7 %, and take 10 steps at least.",
                lambda seconds, step_seconds: int(seconds / step_seconds),
            ),
            Mistake(
                "fewer than 10 steps learn nothing.",
                lambda seconds, step_seconds: int(0.93 * seconds / step_seconds),
            ),
        ),
    ),
    Exercise(
        "capstone.request",
        "Write the body of a request as a dictionary: model, messages with one of the user, "
        "temperature 0, stream True.",
        request,
        lambda g: [("chat", "What is 2 + 2?"), ("mine", "")],
        None,
        (
            Mistake(
                "a chat has a list of messages.",
                lambda model, question: {
                    "model": model, "messages": question, "temperature": 0, "stream": True
                },
            ),
        ),
    ),
    Exercise(
        "capstone.joined",
        "Join the contents of all deltas of a stream; not all events have one, and it ends with "
        "[DONE].",
        joined,
        lambda g: [(LINES,), (LINES[-1:],)],
        None,
        (Mistake("the answer comes in many events.", _joined_first),),
    ),
)  # fmt: skip
