"""Requests of the API -> requests of the engine -> answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi.responses import JSONResponse, Response

from culm.engine.request import Request
from culm.serve.error import ApiError, invalid
from culm.serve.protocol import ChatRequest, CompletionRequest, Generation
from culm.serve.shape import Chat, Completion, Shape, used
from culm.serve.stream import Answer, EventStream, Piece, Score
from culm.serve.worker import Worker
from culm.text.language_model import LanguageModel

COMPLETION_TOKENS = 16  # of a plain completion that names no number, as OpenAI's


class Completer:
    """Answers chat and plain completions with one model, called `name`, or an adapter beside it."""

    def __init__(self, model: LanguageModel, worker: Worker, name: str) -> None:
        self._model, self._worker, self._name = model, worker, name
        self._tokenizer = model.tokenizer

    async def chat(self, body: ChatRequest) -> Response:
        """The next turn of a dialogue."""
        self._admit(body, body.choices)
        messages = [message.plain for message in body.messages]
        try:
            ids = await asyncio.to_thread(lambda: self._tokenizer.chat.prompt(messages))
        except ValueError as error:
            raise invalid(str(error), "messages") from None
        room = self._model.context - len(ids)
        tokens = max(room, 1) if body.most is None else body.most
        self._check_room(len(ids), tokens)
        if tokens < 1:
            raise invalid("max_tokens: it is less than 1", "max_tokens")
        requests = self._requests(body, ids, tokens, body.ranked)
        shape = Chat(body.model, self._tokenizer, bool(body.logprobs), body.include_usage)
        return await self._respond(body, shape, requests, len(ids), [])

    async def complete(self, body: CompletionRequest) -> Response:
        """The continuation of prompts; choice n * i + j is the j-th of prompt i."""
        self._admit(body, body.choices * len(body.prompts))
        tokens = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if tokens < 1 and not body.echo:
            raise invalid("max_tokens: 0 needs echo", "max_tokens")
        prompts = [await self._ids(prompt) for prompt in body.prompts]
        requests: list[Request] = []
        for ids in prompts:
            self._check_room(len(ids), tokens)
            requests += self._requests(body, ids, tokens, body.logprobs)
        echoes = await self._echoes(body, prompts, tokens) if body.echo else []
        scored = body.logprobs is not None
        shape = Completion(body.model, self._tokenizer, scored, body.include_usage)
        requests = requests if tokens else []
        return await self._respond(body, shape, requests, sum(map(len, prompts)), echoes)

    # -----------------------------------------------------------------------------------------

    def _admit(self, body: Generation, count: int) -> None:
        names = (self._name, *self._model.adapters)
        if body.model not in names:
            known = ", ".join(map(repr, names))
            message = f"There is no model {body.model!r} here; this server has {known}."
            raise ApiError(404, message, "model_not_found", "model")
        most = self._worker.capacity
        if count > most:
            raise invalid(f"n: {count} answers at once; {most} are the most here", "n")
        for field, ids in (
            ("logit_bias", body.logit_bias),
            ("stop_token_ids", body.stop_token_ids),
        ):
            self._check_ids(ids or (), field)
        self._worker.check_room(count)

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        ids = await asyncio.to_thread(self._model.prompt_ids, prompt)
        self._check_ids(ids, "prompt")
        return ids

    def _check_ids(self, ids: Iterable[int], field: str) -> None:
        size = self._model.model.config.vocabulary
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            raise invalid(f"{field}: token {outside[0]} is outside the vocabulary", field)

    def _check_room(self, prompt: int, tokens: int) -> None:
        if prompt + tokens > self._model.context:
            raise invalid(
                f"This model's maximum context length is {self._model.context} tokens. However, "
                f"you requested {prompt + tokens} tokens ({prompt} in the prompt, {tokens} in the "
                f"completion). Please reduce one of them.",
                code="context_length_exceeded",
            )

    def _requests(
        self, body: Generation, ids: Sequence[int], tokens: int, ranked: int | None
    ) -> list[Request]:
        stop = frozenset() if body.ignore_eos else self._tokenizer.stop_ids
        stop |= frozenset(body.stop_token_ids or ())
        return [
            Request(tuple(ids), tokens, body.sampling(choice), stop, ranked, self._adapter(body))
            for choice in range(body.choices)
        ]

    def _adapter(self, body: Generation) -> str | None:
        return None if body.model == self._name else body.model

    async def _echoes(
        self, body: CompletionRequest, prompts: Sequence[list[int]], tokens: int
    ) -> list[Piece]:
        """Each choice begins with its prompt, and its scores if logprobs are asked for."""
        pieces: list[Piece] = []
        for given, ids in zip(body.prompts, prompts, strict=True):
            text = given if isinstance(given, str) else self._tokenizer.decode(ids, specials=True)
            scores: tuple[Score, ...] = ()
            if body.logprobs is not None:
                scores = await self._scores(ids, body.logprobs, self._adapter(body))
            for _ in range(body.choices):
                pieces.append(Piece(len(pieces), text, scores, None if tokens else "length"))
        return pieces

    async def _scores(self, ids: list[int], ranked: int, adapter: str | None) -> tuple[Score, ...]:
        """How the model rates each token of a prompt."""

        def rate() -> tuple[list[float], list[list[int]], list[list[float]]]:
            logprobs = self._model.logits(ids, adapter).log_softmax(-1)
            best = logprobs.topk(min(ranked, logprobs.shape[-1]))
            chosen = [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=False)]
            return chosen, best.indices.tolist(), best.values.tolist()

        chosen, tokens, values = await self._worker.call(rate)
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(tokens, values, strict=True)]
        rest = (Score(*score) for score in zip(ids[1:], chosen, tops, strict=False))
        return (Score(ids[0], None), *rest)

    async def _respond(
        self,
        body: Generation,
        shape: Shape,
        requests: Sequence[Request],
        prompt_tokens: int,
        echoes: Sequence[Piece],
    ) -> Response:
        answer = Answer(self._worker, self._worker.submit(requests), self._tokenizer, body.stop)
        if body.stream:
            chunks = _chunks(body, shape, answer, prompt_tokens, echoes)
            return EventStream(chunks, answer.leave)
        wholes: dict[int, list[Piece]] = {}
        for piece in echoes:
            wholes.setdefault(piece.choice, []).append(piece)
        async for item in answer.pieces():
            if item is not None:
                wholes.setdefault(item.choice, []).append(item)
        joined = [_joined(wholes[choice]) for choice in sorted(wholes)]
        return JSONResponse(shape.whole(joined, used(prompt_tokens, answer.tokens)))


async def _chunks(
    body: Generation, shape: Shape, answer: Answer, prompt_tokens: int, echoes: Sequence[Piece]
) -> AsyncIterator[dict[str, Any] | None]:
    for choice in range(answer.choices):
        for chunk in shape.opening(choice):
            yield chunk
    for piece in echoes:
        yield shape.chunk(piece)
    async for item in answer.pieces():
        yield None if item is None else shape.chunk(item)
    if body.include_usage:
        yield shape.usage(used(prompt_tokens, answer.tokens))


def _joined(pieces: Sequence[Piece]) -> Piece:
    text = "".join(piece.text for piece in pieces)
    scores = tuple(score for piece in pieces for score in piece.scores)
    return Piece(pieces[0].choice, text, scores, pieces[-1].finish)
