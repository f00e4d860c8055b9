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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from culm.config import SettingError
from culm.engine.scoring import STEP_TOKENS, Ranked
from culm.log import say
from culm.model.ability import require_text
from culm.model.transformer import Transformer
from culm.serve.account import Account
from culm.serve.answer import AnswerStream, TokenScore, scores_of
from culm.serve.clients import Client, Share
from culm.serve.job import Embedding, Found, Scoring, WorkerTask
from culm.serve.metrics import Metrics
from culm.serve.query import ChatPrompt, Prompt, Query
from culm.serve.query_reader import QueryReader
from culm.serve.query_tasks import echoes_of, tasks_of
from culm.serve.refusal import ShuttingDown, TooSlow, UnknownModel
from culm.serve.settings import ServeConfig
from culm.serve.worker import Worker
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
        require_text(model.model)
        self.model, self.name, self.settings = model, name, settings
        self._engine = model.engine(
            settings.slots, model.context, STEP_TOKENS, settings.prefix_tokens
        )
        obstacles = self._engine.runner.prefix.obstacles
        if settings.prefix_tokens and obstacles:
            say(f"No prefix cache: blocks cannot be restored into a {' or '.join(obstacles)}.")
        self._reader = QueryReader(model)
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
        share = Share(query.client, query.answers)
        try:
            return await self._started(query, adapter, share)
        except BaseException:
            share.end(0)
            raise

    async def _started(self, query: Query, adapter: str | None, share: Share) -> AnswerStream:
        reader, tokenizer = self._reader, self.model.tokenizer
        with self.worker.reserved(query.answers):
            prompts = [await reader.ids(prompt, query.parse_special) for prompt in query.prompts]
            chat = isinstance(query.prompts[0], ChatPrompt)
            thinking = chat and thinks(tokenizer, prompts[0])
            grammar = await reader.grammar(query.form, thinking)
        tasks: list[WorkerTask] = []
        for ids in prompts:
            tasks += tasks_of(query, ids, adapter, grammar, self.model)
        echoes = echoes_of(query, prompts, tokenizer) if query.echo else []
        job = self.worker.submit(tasks)
        account = Account(self.metrics, share, self.settings, prompts, query.choices)
        return AnswerStream(self.worker, job, tokenizer, query.stop, echoes, account, thinking)

    async def score(
        self,
        ids: Sequence[int],
        ranks: int = 0,
        adapter: str | None = None,
        client: Client | None = None,
    ) -> tuple[TokenScore, ...]:
        """Each token's log-probability, with the `ranks` most likely tokens in its place.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        with self.metrics.refusals():
            share, tokens = Share(client or Client(), 1), 0
            try:
                found = await self._found(Scoring(tuple(ids), ranks, adapter))
                tokens = self.metrics.read([ids])
            finally:
                share.end(tokens)
        assert isinstance(found, Ranked)
        return scores_of(ids, found)

    async def embed(
        self, texts: Sequence[Prompt], name: str, client: Client | None = None
    ) -> Embedded:
        """A vector for each text, by the model or an adapter called `name`.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        with self.metrics.refusals():
            adapter = self._adapter(name)
            self.check_open(1)
            share, tokens = Share(client or Client(), 1), 0
            try:
                with self.worker.reserved(1):
                    ids = [await self._reader.short(text) for text in texts]
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

    def _adapter(self, name: str) -> str | None:
        """The adapter of this name; None: it is the model's own."""
        if name not in self.models:
            known = ", ".join(map(repr, self.models))
            raise UnknownModel(f"There is no model {name!r} here; this server has {known}.")
        return None if name == self.name else name

    def _admit(self, query: Query) -> str | None:
        """The adapter that the query names; refuses what is invalid before any work is done."""
        adapter = self._adapter(query.model)
        self._reader.check(query, self.worker.capacity)
        self.check_open(query.answers)
        return adapter

    def _renew(self, model: Transformer) -> None:
        self._engine.weights_changed()
        _copy_weights(model, self.model.model)


@torch.no_grad()
def _copy_weights(source: Transformer, target: Transformer) -> None:
    target.load_state_dict(source.state_dict())
