"""Chat and plain completions: a body becomes a query, its answer JSON or server-sent events."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from culm.serve.answer import AnswerStream, TextPiece
from culm.serve.clients import Client
from culm.serve.http.error import of_refusal
from culm.serve.http.protocol import ChatRequest, CompletionRequest, GenerationRequest
from culm.serve.http.response_events import ResponseEvents
from culm.serve.http.responses import ResponseRequest
from culm.serve.http.shape import ChatShape, CompletionShape, Shape, used
from culm.serve.refusal import Refusal
from culm.serve.service import Service


async def chat(service: Service, body: ChatRequest, client: Client) -> Response:
    """The next turn of a dialogue."""
    answer = await service.ask(replace(body.query(), client=client))
    tokenizer = service.model.tokenizer
    shape = ChatShape(
        body.model, tokenizer, bool(body.logprobs), body.include_usage,
        calls=body.tool_use is not None, thinking=answer.thinking,
    )  # fmt: skip
    return await _respond(body, shape, answer)


async def complete(service: Service, body: CompletionRequest, client: Client) -> Response:
    """The continuation of prompts; choice n * i + j is the j-th of prompt i."""
    answer = await service.ask(replace(body.query(), client=client))
    shape = CompletionShape(
        body.model, service.model.tokenizer, body.logprobs is not None, body.include_usage,
        with_ids=bool(body.return_token_ids), as_ids=bool(body.return_tokens_as_token_ids),
    )  # fmt: skip
    if body.selects:
        pieces = best(await _every_piece(answer), body.n or 1, body.best_of or 1, bool(body.echo))
        return JSONResponse(shape.complete(pieces, used(answer.account)))
    return await _respond(body, shape, answer)


def best(pieces: Sequence[Sequence[TextPiece]], count: int, of: int, echo: bool) -> list[TextPiece]:
    """The `count` answers of each prompt whose tokens have the highest mean log-probability.

    pieces: those of each answer, `of` answers a prompt. echo: the first piece is the prompt.
    """

    def mean(answer: Sequence[TextPiece]) -> float:
        scores = [score.logprob or 0.0 for piece in answer[echo:] for score in piece.scores]
        return sum(scores) / len(scores) if scores else -math.inf

    chosen: list[TextPiece] = []
    for start in range(0, len(pieces), of):
        group = sorted(pieces[start : start + of], key=mean, reverse=True)
        chosen += map(_joined, group[:count])
    return [piece._replace(choice=index) for index, piece in enumerate(chosen)]


async def respond(service: Service, body: ResponseRequest, client: Client) -> Response:
    """The next turn of a dialogue, in the form of the Responses API."""
    answer = await service.ask(replace(body.query(), client=client))
    events = ResponseEvents(body, answer.thinking)
    stream = _events(events, answer)
    if body.stream:
        return EventStream(stream, answer.leave)
    async for _ in stream:
        pass
    return JSONResponse(events.response)


async def _events(
    events: ResponseEvents, answer: AnswerStream
) -> AsyncIterator[dict[str, Any] | None]:
    for event in events.opening():
        yield event
    finish = None
    try:
        async for piece in answer.pieces():
            if piece is None:
                yield None
                continue
            finish = piece.finish
            for event in events.read(piece):
                yield event
    finally:
        answer.leave()
    for event in events.closing(finish, answer.account):
        yield event


async def _respond(body: GenerationRequest, shape: Shape, answer: AnswerStream) -> Response:
    if body.stream:
        return EventStream(_chunks(body, shape, answer), answer.leave)
    joined = list(map(_joined, await _every_piece(answer)))
    return JSONResponse(shape.complete(joined, used(answer.account)))


async def _every_piece(answer: AnswerStream) -> list[list[TextPiece]]:
    """The pieces of each choice."""
    pieces: dict[int, list[TextPiece]] = {}
    try:
        async for piece in answer.pieces():
            if piece is not None:
                pieces.setdefault(piece.choice, []).append(piece)
    finally:
        answer.leave()
    return [pieces[choice] for choice in sorted(pieces)]


async def _chunks(
    body: GenerationRequest, shape: Shape, answer: AnswerStream
) -> AsyncIterator[dict[str, Any] | None]:
    for choice in range(answer.choices):
        for chunk in shape.opening(choice):
            yield chunk
    async for piece in answer.pieces():
        if piece is None:
            yield None
        else:
            for chunk in shape.chunks(piece):
                yield chunk
    if body.include_usage:
        yield shape.usage(used(answer.account))


def _joined(pieces: Sequence[TextPiece]) -> TextPiece:
    text = "".join(piece.text for piece in pieces)
    scores = tuple(score for piece in pieces for score in piece.scores)
    return TextPiece(pieces[0].choice, text, scores, pieces[-1].finish)


class EventStream(StreamingResponse):
    """Server-sent events of a stream of JSON objects, where None becomes a keep-alive comment."""

    media_type = "text/event-stream"

    def __init__(
        self, objects: AsyncIterator[dict[str, Any] | None], leave: Callable[[], None]
    ) -> None:
        """leave: called in the end, even if the client disconnects before the first object."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_lines(objects), headers=headers)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _lines(objects: AsyncIterator[dict[str, Any] | None]) -> AsyncIterator[str]:
    try:
        async for item in objects:
            yield _line(item) if item else ": waiting\n\n"
        yield "data: [DONE]\n\n"
    except Refusal as refusal:  # too late for a status: the stream ends with the error
        yield f"data: {json.dumps(of_refusal(refusal).body)}\n\n"


def _line(item: dict[str, Any]) -> str:
    name = f"event: {item['type']}\n" if "sequence_number" in item else ""
    return f"{name}data: {json.dumps(item, ensure_ascii=False)}\n\n"
