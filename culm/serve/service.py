"""Serves a model to many clients at once, without a transport; HTTP is a thin layer over it.

    service = Service(model, "chat")
    service.start()                              # in a running event loop
    answer = await service.ask(Query("chat", [ChatPrompt(messages)]))
    async for piece in answer.pieces(): ...      # leaving the loop early frees the slot
    await service.stop()

Refusals are the exceptions of `culm.serve.refusal`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from culm.config import SettingError
from culm.engine.request import Request
from culm.engine.scoring import STEP_TOKENS, Ranked
from culm.log import say
from culm.model.transformer import Transformer
from culm.serve.account import Account
from culm.serve.answer import AnswerStream, Echo, TokenScore, scores_of
from culm.serve.clients import ANYONE, Client, Share
from culm.serve.job import Embedding, Found, Scoring, WorkerTask
from culm.serve.metrics import Metrics
from culm.serve.query import ChatPrompt, Prompt, Query
from culm.serve.refusal import (
    ContextTooShort,
    InvalidForm,
    InvalidRequest,
    ShuttingDown,
    TooSlow,
    UnknownModel,
)
from culm.serve.settings import ServeConfig
from culm.serve.worker import Worker
from culm.text.grammar import Grammar, Grammars, after_reasoning
from culm.text.language_model import LanguageModel
from culm.text.message import thinks
from culm.tokenizer.tokenizer import Tokenizer


class Embedded(NamedTuple):
    """vectors: (texts, width) fp32, of unit length. tokens: of all texts."""

    vectors: Tensor
    tokens: int


class Service:
    """Answers queries with one model, called `name`, or with one of its adapters by its name.

    settings: slots, queue, prefix cache and limits on time; those of a transport play no part.
    prefix_tokens: as in `Engine`; clients with one `Client.salt` share what it keeps. Call
    everything except the constructor in one event loop.

    Raises:
        SettingError: an adapter has the model's name.
    """

    def __init__(
        self, model: LanguageModel, name: str, settings: ServeConfig = ServeConfig()
    ) -> None:
        if name in model.adapters:
            raise SettingError(f"adapter: {name!r} is the name of the model; give it another")
        self.model, self.name, self.settings = model, name, settings
        self._engine = model.engine(
            settings.slots, model.context, STEP_TOKENS, settings.prefix_tokens
        )
        obstacles = self._engine.runner.prefix.obstacles
        if settings.prefix_tokens and obstacles:
            say(f"No prefix cache: blocks cannot be restored into a {' or '.join(obstacles)}.")
        self._grammars = Grammars(model.tokenizer, model.model.config.vocabulary)
        self.worker = Worker(self._engine, settings.waiting)
        self.metrics = Metrics(name, self._engine)

    @property
    def models(self) -> tuple[str, ...]:
        """Valid names for `Query.model`: the model's own, then its adapters'."""
        return (self.name, *self.model.adapters)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread."""
        self.worker.start()

    def drain(self) -> None:
        """Refuse new queries; running ones go on."""
        self.worker.draining = True

    @property
    def draining(self) -> bool:
        return self.worker.draining

    @property
    def idle(self) -> bool:
        """Whether no query waits or runs."""
        return self.worker.idle

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs; without it the process must be restarted."""
        return self.worker.alive

    @property
    def ready(self) -> bool:
        """Whether new queries should come here: it does not drain, and the engine works."""
        return not self.draining and self.worker.healthy

    def end_all(self) -> None:
        """End all queries now; their clients get `ShuttingDown`."""
        self.worker.fail(ShuttingDown())

    async def stop(self) -> None:
        """End all queries and the engine's thread."""
        await self.worker.stop()

    def check_open(self, count: int = 0) -> None:
        """Refusal unless `count` more requests would be taken now.

        Raises:
            ShuttingDown: the service drains.
            Overloaded: the queue is too full for them.
        """
        self.worker.check_room(count)

    async def reload(self, read: Callable[[], tuple[Transformer, Tokenizer]]) -> None:
        """Continue with the weights of another model of the same shape.

        Raises:
            SettingError: it cannot be read, or has another shape or tokenizer.
            Refusal: queries wait or run, whose answers would be of both.
        """
        self.check_open()
        model, tokenizer = await asyncio.to_thread(read)
        same = model.config == self.model.model.config
        if not same or tokenizer.fingerprint != self.model.tokenizer.fingerprint:
            raise SettingError("reload: the model there has another shape or tokenizer now")
        # Into the tensors that there are: the engine knows their addresses.
        await self.worker.alone(lambda: self._renew(model))

    # -- queries ------------------------------------------------------------------------------

    async def ask(self, query: Query) -> AnswerStream:
        """Start a query; its answer comes in pieces.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        with self.metrics.refusals():
            return await self._answer(query)

    async def _answer(self, query: Query) -> AnswerStream:
        adapter = self._admit(query)
        share = Share(query.client, query.choices * len(query.prompts))
        try:
            return await self._started(query, adapter, share)
        except BaseException:
            share.end(0)
            raise

    async def _started(self, query: Query, adapter: str | None, share: Share) -> AnswerStream:
        with self.worker.reserved(query.choices * len(query.prompts)):
            prompts = [await self._ids(prompt, query.parse_special) for prompt in query.prompts]
            chat = isinstance(query.prompts[0], ChatPrompt)
            thinking = chat and thinks(self.model.tokenizer, prompts[0])
            grammar = await self._grammar(query.form, thinking)
        tasks: list[WorkerTask] = []
        for ids in prompts:
            tasks += self._tasks(query, ids, adapter, grammar)
        echoes = self._echoes(query, prompts) if query.echo else []
        job = self.worker.submit(tasks)
        account = Account(self.metrics, share, self.settings, prompts, query.choices)
        return AnswerStream(
            self.worker, job, self.model.tokenizer, query.stop, echoes, account, thinking
        )

    async def score(
        self,
        ids: Sequence[int],
        ranks: int = 0,
        adapter: str | None = None,
        client: Client = ANYONE,
    ) -> tuple[TokenScore, ...]:
        """Each token's log-probability, with the `ranks` most likely tokens in its place.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        with self.metrics.refusals():
            share, tokens = Share(client, 1), 0
            try:
                found = await self._found(Scoring(tuple(ids), ranks, adapter))
                tokens = self.metrics.read([ids])
            finally:
                share.end(tokens)
        assert isinstance(found, Ranked)
        return scores_of(ids, found)

    async def embed(self, texts: Sequence[Prompt], name: str, client: Client = ANYONE) -> Embedded:
        """A vector for each text, by the model or an adapter called `name`.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        with self.metrics.refusals():
            adapter = self._adapter(name)
            self.check_open(1)
            share, tokens = Share(client, 1), 0
            try:
                with self.worker.reserved(1):
                    ids = [await self._short(text) for text in texts]
                found = await self._found(Embedding(tuple(ids), adapter))
                tokens = self.metrics.read(ids)
            finally:
                share.end(tokens)
        assert isinstance(found, Tensor)
        return Embedded(found, tokens)

    # -----------------------------------------------------------------------------------------

    async def _found(self, reading: Scoring | Embedding) -> Found:
        """What the engine finds for ids that it reads once."""
        job = self.worker.submit([WorkerTask(reading)])
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return (await job.next())[1]
        except TimeoutError:
            raise TooSlow(self.settings.answer_seconds, waiting=False) from None
        finally:
            self.worker.abort(job)

    async def _short(self, text: Prompt) -> tuple[int, ...]:
        """Ids of a text that the context has room for."""
        ids = await self._ids(text, parse_special=False)
        if not 0 < len(ids) <= self.model.context:
            raise ContextTooShort(
                f"This model's maximum context length is {self.model.context} tokens. "
                f"However, a text has {len(ids)} tokens."
            )
        return tuple(ids)

    def _adapter(self, name: str) -> str | None:
        """The adapter of this name; None: it is the model's own."""
        if name not in self.models:
            known = ", ".join(map(repr, self.models))
            raise UnknownModel(f"There is no model {name!r} here; this server has {known}.")
        return None if name == self.name else name

    def _admit(self, query: Query) -> str | None:
        """The adapter that the query names; refuses what is invalid before any work is done."""
        adapter = self._adapter(query.model)
        count = query.choices * len(query.prompts)
        self._check_values(query, count)
        self.check_open(count)
        return adapter

    def _check_values(self, query: Query, count: int) -> None:
        maximum = self.worker.capacity
        if not 1 <= count <= maximum:
            reason = f"{count} answers in one request; 1 to {maximum} are allowed"
            raise InvalidRequest(f"choices: {reason}", "choices")
        query.check_size()
        self._check_ids([token for token, _ in query.sampling.bias], "bias")
        self._check_ids(query.stop_ids, "stop_ids")
        if query.max_tokens == 0 and not query.echo:
            raise InvalidRequest("max_tokens: less than 1; 0 needs echo", "max_tokens")
        if "" in query.stop:
            raise InvalidRequest("stop: a stop string is empty", "stop")

    async def _ids(self, prompt: Prompt, parse_special: bool) -> list[int]:
        if isinstance(prompt, ChatPrompt):
            chat, tools = self.model.tokenizer.chat, [tool.plain for tool in prompt.tools]
            try:
                return await asyncio.to_thread(chat.prompt, prompt.messages, tools or None)
            except ValueError as error:
                field = "tools" if str(error).startswith("tools") else "messages"
                raise InvalidRequest(str(error), field) from None
        ids = await asyncio.to_thread(self.model.prompt_ids, prompt, parse_special)
        self._check_ids(ids, "prompt")
        return ids

    async def _grammar(self, form: str | None, thinking: bool) -> Grammar | None:
        if form is None:
            return None
        try:
            given = after_reasoning(form) if thinking else form
            return await asyncio.to_thread(self._grammars.compile, given)
        except ValueError as error:
            raise InvalidForm(str(error), "form") from None

    def _check_ids(self, ids: Iterable[int], field: str) -> None:
        size = self.model.model.config.vocabulary
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            raise InvalidRequest(f"{field}: token {outside[0]} is outside the vocabulary", field)

    def _tasks(
        self, query: Query, ids: Sequence[int], adapter: str | None, grammar: Grammar | None
    ) -> list[WorkerTask]:
        """One for each choice of a prompt; the first one scores the prompt if it is echoed."""
        count, context = len(ids), self.model.context
        left = context - count
        if left < (query.max_tokens != 0):
            raise ContextTooShort(
                f"This model's maximum context length is {context} tokens. However, your prompt "
                f"has {count} tokens, which leaves no room for an answer. Please shorten it."
            )
        scoring = None
        if query.echo and query.logprobs is not None:
            scoring = Scoring(tuple(ids), query.logprobs, adapter)
        requests: list[Request | None] = [None] * query.choices
        if query.max_tokens != 0:
            requests = [
                replace(
                    self._request(query, ids, left, choice, adapter),
                    constraint=grammar and grammar.copy(),
                )
                for choice in range(query.choices)
            ]
        return [WorkerTask(None if i else scoring, request) for i, request in enumerate(requests)]

    def _request(
        self, query: Query, ids: Sequence[int], left: int, choice: int, adapter: str | None
    ) -> Request:
        """What generates one choice; left: tokens that fit into the context."""
        tokenizer = self.model.tokenizer
        stop = frozenset() if query.ignore_end else tokenizer.stop_ids
        stop |= tokenizer.stops_named(query.stop) | frozenset(query.stop_ids)
        seed = query.sampling.seed
        return Request(
            tuple(ids),
            left if query.max_tokens is None else min(query.max_tokens, left),
            replace(query.sampling, seed=None if seed is None else seed + choice),
            stop, query.logprobs, adapter, salt=query.client.salt, client=query.client.name,
            priority=query.client.limits.priority,
        )  # fmt: skip

    def _renew(self, model: Transformer) -> None:
        self._engine.weights_changed()
        _copy_weights(model, self.model.model)

    def _echoes(self, query: Query, prompts: Sequence[Sequence[int]]) -> list[Echo]:
        """The text of each prompt, as it was given or from its ids."""
        decode = self.model.tokenizer.decode
        return [
            Echo(given if isinstance(given, str) else decode(list(ids), specials=True), tuple(ids))
            for given, ids in zip(query.prompts, prompts, strict=True)
        ]


@torch.no_grad()
def _copy_weights(source: Transformer, target: Transformer) -> None:
    target.load_state_dict(source.state_dict())
