"""Events of the worker -> pieces of text with their log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from culm.engine.request import Event
from culm.engine.scoring import Ranked
from culm.serve.account import Account
from culm.serve.job import Found, Job, JobEvent
from culm.serve.refusal import FormFailed, NotFinite, Refusal
from culm.serve.worker import Worker
from culm.text.reply import Reply
from culm.tokenizer.tokenizer import Tokenizer

QUIET_SECONDS = 15  # after this time without a token, `pieces` yields None


class TokenScore(NamedTuple):
    """A token, its log-probability (None: nothing precedes it), and the most likely ones."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class TextPiece(NamedTuple):
    """A part of one choice. finish: why it is the last one; None: it is not."""

    choice: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None


@dataclass
class GrowingText:
    """One choice so far.

    Scores wait for the text of their token. Every generated token has one, except tokens whose text
    a stop string removed.
    """

    reply: Reply
    shown: int = 0
    waiting: list[tuple[int, TokenScore]] = field(default_factory=list)  # (offset in text, score)

    def read(self, event: Event) -> tuple[str, tuple[TokenScore, ...], str | None]:
        """Text, scores and finish that can be shown after one more token."""
        offset = self.shown + self.reply.held
        text = self.reply.read(event)
        self.shown += len(text)
        if event.top:
            (_, logprob), *top = event.top
            self.waiting.append((offset, TokenScore(event.token, logprob, tuple(top))))
        complete = self.reply.complete
        ready = tuple(score for offset, score in self.waiting if complete or offset < self.shown)
        self.waiting = self.waiting[len(ready) :]
        stopped = self.reply.stopped or event.finish == "complete"
        return text, ready, "stop" if stopped else event.finish


class Echo(NamedTuple):
    """A prompt that comes before the generated text."""

    text: str
    ids: tuple[int, ...]


def scores_of(ids: Sequence[int], found: Ranked) -> tuple[TokenScore, ...]:
    """One for each token; nothing precedes the first."""
    pairs = zip(found.tokens.tolist(), found.values.tolist(), strict=True)
    tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
    rest = zip(ids[1:], found.logprobs.tolist(), tops, strict=True)
    return (TokenScore(ids[0], None), *(TokenScore(*score) for score in rest))


class AnswerStream:
    """All choices of a query, piece by piece; leaving `pieces` early ends the generation.

    job: one task for each choice; the first one of a prompt scores it. echoes: of each prompt, to
    come before the generated text. account: what the answers use. thinking: they start with
    reasoning, because their prompt ends with its mark.
    """

    def __init__(
        self,
        worker: Worker,
        job: Job,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        echoes: Sequence[Echo],
        account: Account,
        thinking: bool = False,
    ) -> None:
        self._worker, self._job = worker, job
        self._texts = [GrowingText(Reply(tokenizer, stops)) for _ in job.tasks]
        self._echoes = tuple(echoes)
        self._early: dict[int, list[Event]] = {}  # tokens of choices whose prompt is not scored yet
        self._left = len(job.tasks)
        self.account, self.thinking = account, thinking

    async def pieces(self) -> AsyncIterator[TextPiece | None]:
        """Pieces as they come; None after QUIET_SECONDS without one.

        Raises:
            Refusal: the generation ended before its time.
        """
        try:
            for prompt in range(len(self._echoes)):
                group = self._group(prompt)
                if self._job.tasks[group[0]].reading:
                    self._early |= {choice: [] for choice in group}
                    continue
                for echo in self._echoed(prompt, ()):
                    yield echo
            while self._left:
                event = await self._next()
                for piece in [None] if event is None else self._read(*event):
                    yield piece
        except Refusal as refusal:
            self.account.fail(refusal)
            raise
        finally:
            self.leave()

    @property
    def choices(self) -> int:
        """Texts that are generated."""
        return len(self._texts)

    def leave(self) -> None:
        """End what still runs."""
        self._worker.abort(self._job)
        self.account.close()

    # -----------------------------------------------------------------------------------------

    async def _next(self) -> JobEvent | None:
        # Not asyncio.wait_for: that of Python 3.11 ignores a cancellation that comes with an event.
        try:
            async with asyncio.timeout(min(self.account.left(), QUIET_SECONDS)):
                return await self._job.next()
        except TimeoutError:
            return None

    def _group(self, prompt: int) -> range:
        """The choices of a prompt."""
        size = len(self._texts) // len(self._echoes)
        return range(prompt * size, (prompt + 1) * size)

    def _read(self, index: int, event: Found) -> list[TextPiece]:
        """What can be shown after an event."""
        if isinstance(event, Ranked):
            prompt = index * len(self._echoes) // len(self._texts)
            pieces = self._echoed(prompt, scores_of(self._echoes[prompt].ids, event))
            for choice in self._group(prompt):
                for early in self._early.pop(choice):
                    pieces += self._read(choice, early)
            return pieces
        assert isinstance(event, Event)
        if index in self._early:
            self._early[index].append(event)
            return []
        growing = self._texts[index]
        if growing.reply.stopped:  # a token that was on its way when its text ended
            return []
        if event.finish == "failed":
            raise FormFailed()
        if event.finish == "invalid":
            raise NotFinite()
        self.account.token(index, event.cached)
        text, scores, finish = growing.read(event)
        if finish:
            self._left -= 1
            self._worker.abort(self._job, index)
            self.account.end(index, finish)
        return [TextPiece(index, text, scores, finish)] if text or scores or finish else []

    def _echoed(self, prompt: int, scores: tuple[TokenScore, ...]) -> list[TextPiece]:
        """The start of each choice of a prompt, which may be all of it."""
        pieces = []
        for choice in self._group(prompt):
            finish = None if self._job.tasks[choice].request else "length"
            if finish:
                self._left -= 1
                self.account.end(choice, finish)
            pieces.append(TextPiece(choice, self._echoes[prompt].text, scores, finish))
        return pieces
