"""The part of `culm eval` on dialogues: who judges, how two models compare, and what is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeGuard

from culm.config import SettingError
from culm.endpoint import Endpoint, EndpointError
from culm.eval.interval import difference
from culm.eval.measure.chat import Chat, Conversed

TIMEOUT, RETRIES = 60.0, 3  # seconds of a request for the names of a server's models
MISSING = (
    "judge: this suite asks a language model to judge; give one, as in --judge "
    "http://localhost:8000/v1#MODEL, or name it in a suite of your own (base: chat) by "
    "measures.chat.reward.url and .model"
)


def with_judge(values: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    """The values of a suite with a judge. given: URL#MODEL; the server's first model unless named.

    Raises:
        SettingError: there is none and the suite needs one, or it is given in vain.
    """
    used, measures = False, dict(values.get("measures") or {})
    for name, one in measures.items():
        if not isinstance(one, Mapping) or one.get("kind", name) != "chat":
            continue
        rewards = one.get("reward")
        listed = rewards if isinstance(rewards, list) else [rewards]
        used = used or any(map(_is_judge, listed))
        judged = [_judge(one, given) if _is_judge(one) else one for one in listed]
        measures[name] = {**one, "reward": judged}
    if given is not None and not used:
        raise SettingError("judge: the suite has no replies to judge; see configs/eval/chat.yaml")
    return {**values, "measures": measures}


def _is_judge(reward: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(reward, Mapping) and reward.get("kind") == "judge"


def _judge(reward: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    if given is None and "url" not in reward:
        raise SettingError(MISSING)
    return {**reward, **(_named(given) if given is not None else {})}


def _named(given: str) -> dict[str, str]:
    url, _, model = given.partition("#")
    try:
        return {"url": url, "model": model or Endpoint(url, "", TIMEOUT, RETRIES).names()[0]}
    except EndpointError as error:
        raise SettingError(f"judge: {error}") from None


def chat_gains(
    name: str, measure: Chat, ours: Conversed, theirs: Conversed, seed: int
) -> dict[str, Any]:
    """How much more our replies earn than those to the same requests, and, where a judge compares
    them in pairs, how many it prefers.
    """
    others = {(s.place, s.turn): r for s, r in zip(theirs.said, theirs.rewards, strict=True)}
    pairs = [
        (reward, others[key])
        for said, reward in zip(ours.said, ours.rewards, strict=True)
        if (key := (said.place, said.turn)) in others
    ]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    found: dict[str, Any] = {}
    if known:
        more = difference([a for a, _ in known], [b for _, b in known], seed)
        found[f"{name}.reward"] = asdict(more)
    if (preferred := measure.duel(ours.said, theirs.said, seed)) is not None:
        found[f"{name}.preferred"] = asdict(preferred)
    return found


def chat_lines(results: Mapping[str, Any], gains: Mapping[str, Any]) -> Iterator[str]:
    """What is shown of rewards, a line each."""
    for name, table in results.items():
        if name.rpartition(".")[2] == "rewards":
            for task, one in table.items():
                yield f"{task}: reward {_number(one)}, {one['items']:,} replies"
    for name, one in gains.items():
        if name.endswith(".reward"):
            yield f"more reward than the other model: {_number(one)}"
        elif name.endswith(".preferred"):
            share = {key: 100 * one[key] for key in ("value", "low", "high")}
            yield f"preferred to the other model: {_number(share)} %"


def _number(one: Mapping[str, float]) -> str:
    return f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})"
