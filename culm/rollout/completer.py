"""What samples the completions of a rollout: the engine in this process, or a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from culm.config import Config
from culm.engine.engine import Engine
from culm.engine.request import Completion, Request
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import unsharded
from culm.rollout.trajectory import Trajectory
from culm.tokenizer.tokenizer import Tokenizer

Export = Callable[[Path], None]  # writes the policy as a Hugging Face folder; every rank calls it


@dataclass(frozen=True)
class Policy:
    """What answers are sampled from.

    slots: completions that are sampled together. export: None where nothing is written.
    """

    model: Transformer
    tokenizer: Tokenizer
    slots: int
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    export: Export | None = None


class Probe(NamedTuple):
    """A dialogue without an answer yet, and the request for one."""

    start: Trajectory
    request: Request


class Completer(Protocol):
    """Continues prompts with the policy as it is. Every rank takes part, though each may call
    `complete` another number of times.
    """

    def check(self, probes: Sequence[Probe]) -> None:
        """Before the first step: whether prompts are continued as they should be.

        Raises:
            SettingError: they are not.
        """
        ...

    def renew(self, probes: Sequence[Probe]) -> None:
        """Before a rollout: the policy may have changed.

        Raises:
            SettingError: it cannot be sampled from.
        """
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Where `complete` may be called."""
        ...

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """A completion of each request, in order."""
        ...


class EngineSampler(Config):
    """The engine in this process samples with the policy's own weights."""

    kind: Literal["engine"] = "engine"

    @property
    def follows(self) -> bool:
        """Whether every rollout is sampled with the newest weights."""
        return True

    def build(self, policy: Policy) -> Completer:
        return EngineCompleter(policy)


class EngineCompleter:
    """Samples with the one engine, which reads the weights where they are."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def check(self, probes: Sequence[Probe]) -> None:
        """Nothing can differ."""

    def renew(self, probes: Sequence[Probe]) -> None:
        """Nothing is copied."""

    @contextmanager
    def sampling(self) -> Iterator[None]:
        with unsharded(self._policy.model):
            yield

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        policy = self._policy
        longest = max(len(request.prompt) + request.max_tokens for request in requests)
        slots = min(len(requests), policy.slots)
        engine = Engine(policy.model, slots, longest, vocabulary=policy.tokenizer.vocabulary)
        return engine.generate(requests)
