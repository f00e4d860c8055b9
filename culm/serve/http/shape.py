"""The JSON of answers: chat completions and plain completions, complete and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from culm.serve.account import Account
from culm.serve.answer import TextPiece, TokenScore
from culm.serve.http.offsets import TextOffsets
from culm.text.message import Delta, MessageReader, joined
from culm.tokenizer.tokenizer import Tokenizer

Json = dict[str, Any]
LEAST_LOGPROB = -9999.0  # OpenAI's for tokens that are never sampled: JSON has no infinity


class Shape(Protocol):
    """The JSON of one kind of answer."""

    def opening(self, choice: int) -> list[Json]:
        """Chunks before the first piece of a choice."""

    def chunks(self, piece: TextPiece) -> list[Json]:
        """A piece in a stream."""

    def complete(self, pieces: Sequence[TextPiece], usage: Json) -> Json:
        """All pieces at once."""

    def usage(self, usage: Json) -> Json:
        """The last chunk of a stream, for clients that ask for usage."""


class ChatShape:
    """`chat.completion` and its chunks.

    calls: tools were offered. thinking: answers start with their reasoning.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        scored: bool,
        with_usage: bool,
        calls: bool = False,
        thinking: bool = False,
    ) -> None:
        self._tokenizer, self._scored, self._with_usage = tokenizer, scored, with_usage
        self._head = _head("chatcmpl", name)
        self._new_reader = partial(MessageReader, thinking, calls)
        self._readers: dict[int, MessageReader] = {}

    def opening(self, choice: int) -> list[Json]:
        return [self._chunk(choice, {"role": "assistant", "content": ""}, None, None)]

    def chunks(self, piece: TextPiece) -> list[Json]:
        reader = self._readers.setdefault(piece.choice, self._new_reader())
        deltas = [_delta(one) for one in reader.read(piece.text, last=piece.finish is not None)]
        if not deltas and (piece.finish or piece.scores):
            deltas = [{}]
        last = len(deltas) - 1
        return [
            self._chunk(
                piece.choice, delta, self._logprobs(() if i else piece.scores),
                _finish(piece, reader) if i == last else None,
            )
            for i, delta in enumerate(deltas)
        ]  # fmt: skip

    def complete(self, pieces: Sequence[TextPiece], usage: Json) -> Json:
        choices = []
        for piece in pieces:
            reader = self._new_reader()
            message = _message(reader.read(piece.text, last=True))
            choices.append({
                "index": piece.choice,
                "message": message,
                "logprobs": self._logprobs(piece.scores),
                "finish_reason": _finish(piece, reader),
            })  # fmt: skip
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
        return {"token": text, "logprob": _finite(logprob), "bytes": list(spelt)}


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

    def chunks(self, piece: TextPiece) -> list[Json]:
        usage = {"usage": None} if self._with_usage else {}
        return [{**self._head, "choices": [self._choice(piece)], **usage}]

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
            "token_logprobs": [_finite(score.logprob) for score in piece.scores],
            "top_logprobs": [self._top(score) for score in piece.scores],
            "text_offset": offsets.of(piece),
        }

    def _top(self, score: TokenScore) -> dict[str, float | None] | None:
        if score.logprob is None:
            return None
        return {self._name(token): _finite(value) for token, value in score.top}

    def _name(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        text, spelt = spelling(self._tokenizer, token)
        # Names are keys here, and all parts of a character would share one.
        return "bytes:" + "".join(f"\\x{b:02x}" for b in spelt) if "\ufffd" in text else text


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


def _delta(given: Delta) -> Json:
    """A change of a message in a stream."""
    if given.reasoning:
        return {"reasoning_content": given.reasoning}
    if given.call is None:
        return {"content": given.content}
    index, name, arguments = given.call
    if name is None:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
    return {"tool_calls": [{"index": index, **_call(name, arguments)}]}


def _call(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _message(deltas: Sequence[Delta]) -> Json:
    """A whole message. Without any text, calls have a content of null."""
    content, reasoning, given = joined(deltas)
    calls = [_call(name, arguments) for name, arguments in given]
    return {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
        **({"reasoning_content": reasoning} if reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _finish(piece: TextPiece, reader: MessageReader) -> str | None:
    return "tool_calls" if piece.finish == "stop" and reader.called else piece.finish


def spelling(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token as text and as bytes; a special token is spelt by its name."""
    if token >= tokenizer.vocabulary:
        return f"<{token}>", b""
    spelt = tokenizer.bytes_of(token)
    if spelt:
        return spelt.decode("utf-8", "replace"), spelt
    name = tokenizer.decode([token], specials=True)
    return name, name.encode()


def used(account: Account) -> Json:
    """The `usage` of an answer."""
    prompt, generated = account.prompt_tokens, account.generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": account.cached_tokens},
    }


def _head(kind: str, name: str) -> Json:
    number = f"{kind}-{secrets.token_hex(12)}"
    return {"id": number, "object": "", "created": int(time.time()), "model": name}
