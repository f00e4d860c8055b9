"""A server with the API of OpenAI, such as vLLM, that samples the answers of a rollout.

export     the policy -> `weights`, a Hugging Face folder       before each rollout
reload     the server reads the folder
probe      its log-probabilities are those of the policy        or the run is refused
complete   token ids -> token ids and log-probabilities
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from culm.address import check_address, key_of
from culm.config import Config, SettingError
from culm.endpoint import Endpoint, EndpointError, ServiceFailed, ask_each
from culm.engine.request import Completion, Request
from culm.objective.policy import policy_logprobs
from culm.parallel.sharded import unsharded
from culm.rollout.completer import Completer, Policy, Probe
from culm.rollout.returned import completion_of
from culm.rollout.trajectory import to_rows

SETTING = "train.rollout.sampler"


class Reload(Config):
    """A request that makes the server read its weights again.

    path: of the server, such as /collective_rpc; not of its API. body: what is posted as JSON.
    """

    path: str = Field(pattern="^/[^?#]*$")
    body: dict[str, Any] = Field(default_factory=dict)


class RemoteSampler(Config):
    """A server with the API of OpenAI samples. It gets prompts as token ids, and must answer with
    token ids and log-probabilities, as vLLM and `culm serve` do.

    url: of the API, such as http://localhost:8000/v1. model: its name there. weights: a folder that
    the policy is exported to before each rollout, in the format of Hugging Face; the server must
    read the same folder. reload: requests that make the server do so, in order. Without the two the
    server keeps its weights, and the objective must correct for it.

    tolerance: mean difference, in nats, up to which the log-probabilities of the server may differ
    from those of the policy for the same tokens; a run with other ones is refused.

    timeout: seconds of an attempt. retries: further attempts where one fails. concurrent: requests
    at the same time, of each rank. api_key: the environment variable that holds the API key.
    """

    kind: Literal["remote"] = "remote"
    url: str
    model: str = Field(min_length=1)
    weights: Path | None = None
    reload: tuple[Reload, ...] = ()
    tolerance: PositiveFloat = 0.1
    timeout: PositiveFloat = 600.0
    retries: NonNegativeInt = 5
    concurrent: PositiveInt = 32
    api_key: str | None = None

    @model_validator(mode="after")
    def _usable(self) -> RemoteSampler:
        check_address(self.url, self.api_key)
        if (self.weights is None) != (not self.reload):
            raise ValueError(
                "weights: give both the folder that the policy is exported to and reload, the "
                "requests that make the server read it; or neither"
            )
        return self

    @property
    def follows(self) -> bool:
        """Whether every rollout is sampled with the newest weights."""
        return bool(self.reload)

    def build(self, policy: Policy) -> Completer:
        return RemoteCompleter(self, policy)


class RemoteCompleter:
    """Asks a server; each rank asks for its own prompts."""

    def __init__(self, config: RemoteSampler, policy: Policy) -> None:
        self.config, self.policy = config, policy
        key = None if config.api_key is None else key_of(config.api_key, f"{SETTING}.api_key")
        self.endpoint = Endpoint(config.url, config.model, config.timeout, config.retries, key)

    def check(self, probes: Sequence[Probe]) -> None:
        """Whether the server answers in a form that can be learned from, and, where it keeps its
        weights, whether they are those that the run starts from.
        """
        self._probe(probes, compared=not self.config.follows)

    def renew(self, probes: Sequence[Probe]) -> None:
        """Have the server read the policy, and see that it did."""
        if not self.config.follows:
            return
        assert self.config.weights is not None
        assert self.policy.export is not None
        with self.sampling():
            self.policy.export(self.config.weights)
        with self.sampling():
            try:
                if self.policy.ranks.writer:
                    self._reload()
            finally:
                self.policy.ranks.wait()
        self._probe(probes, compared=True)

    def _reload(self) -> None:
        for one in self.config.reload:
            try:
                self.endpoint.root.send(one.path.removeprefix("/"), one.body)
            except EndpointError as error:
                raise EndpointError(f"{one.path}: {error}") from error

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """All ranks give up together where one of them gets no answer, or cannot export.

        Raises:
            ServiceFailed: the server gave no answer, or another rank failed.
        """
        lost: Exception | None = None
        try:
            yield
        except (EndpointError, SettingError, OSError) as error:
            lost = error
        reasons = self.policy.ranks.everyone(None if lost is None else str(lost))
        if lost is not None and not isinstance(lost, EndpointError):
            raise lost
        for reason in reasons:
            if reason is not None:
                raise ServiceFailed(
                    f"{SETTING}: {reason}; once the server answers, the same command resumes the "
                    "run"
                ) from lost

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """A completion of each request, in order.

        Raises:
            EndpointError: the server gives no answer, or none that can be learned from.
        """
        return ask_each(self._complete, requests, self.config.concurrent)

    def _complete(self, request: Request) -> Completion:
        # All that could change the distribution is given: a server may take its own defaults from
        # the generation_config.json of the model.
        asked = {
            "prompt": list(request.prompt), "max_tokens": request.max_tokens,
            "seed": request.sampling.seed, "temperature": request.sampling.temperature,
            "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "ignore_eos": True, "stop_token_ids": sorted(request.stop),
            "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        body = self.endpoint.post("completions", asked)
        try:
            return completion_of(body, request, self.policy.tokenizer.vocabulary)
        except EndpointError as error:
            raise EndpointError(f"{self.config.url} cannot be learned from: {error}") from None

    def _probe(self, probes: Sequence[Probe], compared: bool) -> None:
        """Have prompts continued, and compare the log-probabilities with those of the policy.

        Raises:
            ServiceFailed: they differ, so that the server has another model or other weights.
        """
        with self.sampling():
            completions = self.complete([probe.request for probe in probes])
        if not compared:
            return
        difference = max(self.policy.ranks.everyone(self._difference(probes, completions)))
        if not difference <= self.config.tolerance:
            raise ServiceFailed(
                f"{SETTING}: the log-probabilities of {self.config.url} differ from those of the "
                f"policy by {difference:.2g} nats on average, more than the tolerance of "
                f"{self.config.tolerance:g}; it serves another model, or other weights"
            )

    @torch.no_grad()
    def _difference(self, probes: Sequence[Probe], completions: Sequence[Completion]) -> float:
        """The mean over all sampled tokens, in nats."""
        policy = self.policy
        for probe, completion in zip(probes, completions, strict=True):
            probe.start.say(completion, "")
        rows, reported = to_rows([probe.start for probe in probes], policy.tokenizer.end_of_text)
        rows = replace(rows, vocabulary=policy.tokenizer.vocabulary)
        with unsharded(policy.model):
            own = policy_logprobs(policy.model, rows.to(policy.model.device)).float().cpu()
        return float((own - reported).abs()[rows.targets >= 0].mean())
