"""The JSON of answers: chat completions and plain completions, complete and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from culm.serve.answer import TextPiece, TokenScore
from culm.serve.http.offsets import TextOffsets
from culm.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]


class Shape(Protocol):
    """The JSON of one kind of answer."""

    def opening(self, choice: int) -> list[Json]:
        """Chunks before the first piece of a choice."""

    def chunk(self, piece: TextPiece) -> Json:
        """A piece in a stream."""

    def complete(self, pieces: Sequence[TextPiece], usage: Json) -> Json:
        """All pieces at once."""

    def usage(self, usage: Json) -> Json:
        """The last chunk of a stream, for clients that ask for usage."""


class ChatShape:
    """`chat.completion` and its chunks."""

    def __init__(self, name: str, tokenizer: Tokenizer, scored: bool, with_usage: bool) -> None:
        self._tokenizer, self._scored, self._with_usage = tokenizer, scored, with_usage
        self._head = _head("chatcmpl", name)

    def opening(self, choice: int) -> list[Json]:
        return [self._chunk(choice, {"role": "assistant", "content": ""}, None, None)]

    def chunk(self, piece: TextPiece) -> Json:
        delta = {"content": piece.text} if piece.text or not piece.finish else {}
        return self._chunk(piece.choice, delta, self._logprobs(piece.scores), piece.finish)

    def complete(self, pieces: Sequence[TextPiece], usage: Json) -> Json:
        choices = [
            {
                "index": piece.choice,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": self._logprobs(piece.scores),
                "finish_reason": piece.finish,
            }
            for piece in pieces
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def usage(self, usage: Json) -> Json:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(self, choice: int, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._with_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [body], **usage}

    def _logprobs(self, scores: Sequence[TokenScore]) -> Json | None:
        if not self._scored:
            return None
        content = [
            {
                **self._token(score.token, score.logprob),
                "top_logprobs": [self._token(*pair) for pair in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Json:
        text, spelt = spelling(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(spelt)}


class CompletionShape:
    """`text_completion`, whose chunks have the shape of the complete answer.

    As vLLM names them: with_ids adds `token_ids`; as_ids names tokens `token_id:65` in `logprobs`.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        scored: bool,
        with_usage: bool,
        with_ids: bool = False,
        as_ids: bool = False,
    ) -> None:
        self._with_ids, self._as_ids = with_ids, as_ids
        self._tokenizer, self._scored, self._with_usage = tokenizer, scored, with_usage
        self._head = {**_head("cmpl", name), "object": "text_completion"}
        self._offsets: dict[int, TextOffsets] = {}

    def opening(self, choice: int) -> list[Json]:
        return []

    def chunk(self, piece: TextPiece) -> Json:
        usage = {"usage": None} if self._with_usage else {}
        return {**self._head, "choices": [self._choice(piece)], **usage}

    def complete(self, pieces: Sequence[TextPiece], usage: Json) -> Json:
        return {**self._head, "choices": [self._choice(piece) for piece in pieces], "usage": usage}

    def usage(self, usage: Json) -> Json:
        return {**self._head, "choices": [], "usage": usage}

    def _choice(self, piece: TextPiece) -> Json:
        logprobs = self._logprobs(piece) if self._scored else None
        ids = {"token_ids": [score.token for score in piece.scores]} if self._with_ids else {}
        return {
            "index": piece.choice,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
            **ids,
        }

    def _logprobs(self, piece: TextPiece) -> Json:
        offsets = self._offsets.setdefault(piece.choice, TextOffsets(self._tokenizer))
        return {
            "tokens": [self._name(score.token) for score in piece.scores],
            "token_logprobs": [score.logprob for score in piece.scores],
            "top_logprobs": [self._top(score) for score in piece.scores],
            "text_offset": offsets.of(piece),
        }

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        if score.logprob is None:
            return None
        return {self._name(token): value for token, value in score.top}

    def _name(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        text, spelt = spelling(self._tokenizer, token)
        # Names are keys here, and all parts of a character would share one.
        return "bytes:" + "".join(f"\\x{b:02x}" for b in spelt) if "\ufffd" in text else text


def spelling(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token as text and as bytes; a special token is spelt by its name."""
    if token >= tokenizer.vocabulary:
        return f"<{token}>", b""
    spelt = tokenizer.bytes_of(token)
    if spelt:
        return spelt.decode("utf-8", "replace"), spelt
    name = tokenizer.decode([token], specials=True)
    return name, name.encode()


def used(prompt: int, generated: int) -> Json:
    """The `usage` of an answer."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def _head(kind: str, name: str) -> Json:
    number = f"{kind}-{secrets.token_hex(12)}"
    return {"id": number, "object": "", "created": int(time.time()), "model": name}
