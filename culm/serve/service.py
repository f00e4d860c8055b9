"""Serves a model to many clients at once, without a transport; HTTP is a thin layer over it.

    service = Service(model, "chat")
    service.start()                              # in a running event loop
    answer = await service.ask(Query("chat", [Dialogue(messages)]))
    async for piece in answer.pieces(): ...      # leaving the loop early frees the slot
    await service.stop()

Refusals are the exceptions of `culm.serve.refusal`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from culm.config import SettingError
from culm.engine.request import Request
from culm.serve.answer import AnswerStream, TextPiece, TokenScore
from culm.serve.query import Dialogue, Prompt, Query
from culm.serve.refusal import ContextTooShort, InvalidRequest, ShuttingDown, UnknownModel
from culm.serve.worker import Worker
from culm.text.language_model import LanguageModel


class Service:
    """Answers queries with one model, called `name`, or with one of its adapters by its name.

    slots: maximum concurrent requests. waiting: maximum length of the queue; further requests are
    refused. Call everything except the constructor in one event loop.

    Raises:
        SettingError: an adapter has the model's name.
    """

    def __init__(self, model: LanguageModel, name: str, slots: int = 8, waiting: int = 64) -> None:
        if name in model.adapters:
            raise SettingError(f"adapter: {name!r} is the name of the model; give it another")
        self.model, self.name = model, name
        self._engine = model.engine(slots, model.context)
        self.worker = Worker(self._engine, waiting)

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

    # -- queries ------------------------------------------------------------------------------

    async def ask(self, query: Query) -> AnswerStream:
        """Start a query; its answer comes in pieces.

        Raises:
            Refusal: it cannot be served, or not now.
        """
        adapter = self._admit(query)
        prompts = [await self._ids(prompt) for prompt in query.prompts]
        requests: list[Request] = []
        for ids in prompts:
            requests += self._requests(query, ids, adapter)
        echoes = await self._echoes(query, prompts, adapter) if query.echo else []
        job = self.worker.submit([] if query.max_tokens == 0 else requests)
        count = sum(map(len, prompts))
        return AnswerStream(self.worker, job, self.model.tokenizer, query.stop, echoes, count)

    async def score(
        self, ids: Sequence[int], ranks: int = 0, adapter: str | None = None
    ) -> tuple[TokenScore, ...]:
        """Each token's log-probability, with the `ranks` most likely tokens in its place."""

        found = await self.worker.call(lambda: self._engine.rank(ids, ranks, adapter))
        pairs = zip(found.tokens.tolist(), found.values.tolist(), strict=True)
        tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
        rest = (
            TokenScore(*score) for score in zip(ids[1:], found.logprobs.tolist(), tops, strict=True)
        )
        return (TokenScore(ids[0], None), *rest)

    # -----------------------------------------------------------------------------------------

    def _admit(self, query: Query) -> str | None:
        """The adapter that the query names; refuses what is invalid before any work is done."""
        if query.model not in self.models:
            known = ", ".join(map(repr, self.models))
            raise UnknownModel(f"There is no model {query.model!r} here; this server has {known}.")
        count = query.choices * len(query.prompts)
        self._check_values(query, count)
        self.check_open(count)
        return None if query.model == self.name else query.model

    def _check_values(self, query: Query, count: int) -> None:
        maximum = self.worker.capacity
        if not 1 <= count <= maximum:
            reason = f"{count} answers in one request; 1 to {maximum} are allowed"
            raise InvalidRequest(f"choices: {reason}", "choices")
        self._check_ids([token for token, _ in query.sampling.bias], "bias")
        self._check_ids(query.stop_ids, "stop_ids")
        if query.max_tokens == 0 and not query.echo:
            raise InvalidRequest("max_tokens: less than 1; 0 needs echo", "max_tokens")
        if "" in query.stop:
            raise InvalidRequest("stop: a stop string is empty", "stop")

    async def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Dialogue):
            chat, messages = self.model.tokenizer.chat, prompt.messages
            try:
                return await asyncio.to_thread(chat.prompt, messages)
            except ValueError as error:
                raise InvalidRequest(str(error), "messages") from None
        ids = await asyncio.to_thread(self.model.prompt_ids, prompt)
        self._check_ids(ids, "prompt")
        return ids

    def _check_ids(self, ids: Iterable[int], field: str) -> None:
        size = self.model.model.config.vocabulary
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            raise InvalidRequest(f"{field}: token {outside[0]} is outside the vocabulary", field)

    def _requests(self, query: Query, ids: Sequence[int], adapter: str | None) -> list[Request]:
        """One for each choice of a prompt."""
        count, context = len(ids), self.model.context
        tokens = max(context - count, 1) if query.max_tokens is None else query.max_tokens
        if count + tokens > context:
            raise ContextTooShort(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{count + tokens} tokens ({count} in the prompt, {tokens} in the completion). "
                f"Please reduce one of them."
            )
        stop = frozenset() if query.ignore_end else self.model.tokenizer.stop_ids
        stop |= frozenset(query.stop_ids)
        seed = query.sampling.seed
        return [
            Request(
                tuple(ids), tokens,
                replace(query.sampling, seed=None if seed is None else seed + choice),
                stop, query.logprobs, adapter,
            )
            for choice in range(query.choices)
        ]  # fmt: skip

    async def _echoes(
        self, query: Query, prompts: Sequence[Sequence[int]], adapter: str | None
    ) -> list[TextPiece]:
        """Each choice starts with its prompt, and with its scores if the query wants them."""
        pieces: list[TextPiece] = []
        finish = "length" if query.max_tokens == 0 else None
        for given, ids in zip(query.prompts, prompts, strict=True):
            decode = self.model.tokenizer.decode
            text = given if isinstance(given, str) else decode(list(ids), specials=True)
            scores: tuple[TokenScore, ...] = ()
            if query.logprobs is not None:
                scores = await self.score(ids, query.logprobs, adapter)
            for _ in range(query.choices):
                pieces.append(TextPiece(len(pieces), text, scores, finish))
        return pieces
