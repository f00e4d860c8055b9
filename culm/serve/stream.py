"""Events of the engine -> pieces of text with their log-probabilities -> server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from culm.engine.request import Event
from culm.serve.error import ApiError
from culm.serve.worker import Job, Worker
from culm.text.reply import Reply
from culm.tokenizer.tokenizer import Tokenizer

QUIET_SECONDS = 15  # after so long without a token, a sign of life is sent


class Score(NamedTuple):
    """A token with its log-probability (None: nothing is before it), and the likeliest ones."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Piece(NamedTuple):
    """A part of one choice; finish tells that it is the last one, and why."""

    choice: int
    text: str
    scores: tuple[Score, ...] = ()
    finish: str | None = None


@dataclass
class Choice:
    """One text as it grows. Scores wait for the text of their token, and fall with it."""

    reply: Reply
    shown: int = 0
    waiting: list[tuple[int, Score]] = field(default_factory=list)  # (offset in the text, score)

    def read(self, event: Event) -> tuple[str, tuple[Score, ...], str | None]:
        offset = self.shown + self.reply.held
        text = self.reply.read(event)
        self.shown += len(text)
        if event.top and event.finish != "stop":  # the stop token is no part of the text
            (_, logprob), *top = event.top
            self.waiting.append((offset, Score(event.token, logprob, tuple(top))))
        whole = not self.reply.stopped and not self.reply.held
        ready = tuple(score for offset, score in self.waiting if whole or offset < self.shown)
        self.waiting = self.waiting[len(ready) :]
        return text, ready, "stop" if self.reply.stopped else event.finish


class Answer:
    """All choices of a request, piece by piece; leaving `pieces` early ends the generation."""

    def __init__(
        self, worker: Worker, job: Job, tokenizer: Tokenizer, stops: Sequence[str] | None
    ) -> None:
        self._worker, self._job = worker, job
        self._choices = [Choice(Reply(tokenizer, stops or ())) for _ in job.requests]
        self.tokens = 0  # generated so far

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """Pieces as they come; None for a while without any."""
        left = len(self._choices)
        try:
            while left:
                try:
                    index, event = await asyncio.wait_for(self._job.next(), QUIET_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                choice = self._choices[index]
                if choice.reply.stopped:  # a token that was on its way when its text ended
                    continue
                self.tokens += 1
                text, scores, finish = choice.read(event)
                if finish:
                    left -= 1
                    self._worker.abort(self._job, index)
                if text or scores or finish:
                    yield Piece(index, text, scores, finish)
        finally:
            self.leave()

    @property
    def choices(self) -> int:
        return len(self._choices)

    def leave(self) -> None:
        """End what still runs."""
        self._worker.abort(self._job)


class EventStream(StreamingResponse):
    """Server-sent events of a stream of JSON objects, of which None is a sign of life."""

    media_type = "text/event-stream"

    def __init__(
        self, objects: AsyncIterator[dict[str, Any] | None], leave: Callable[[], None]
    ) -> None:
        """leave: called in the end, also when the client goes before the first object."""
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
            yield f"data: {json.dumps(item, ensure_ascii=False)}\n\n" if item else ": waiting\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:  # too late for a status: the stream ends with the error
        yield f"data: {json.dumps(error.body)}\n\n"
