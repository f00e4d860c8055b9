"""A response of the Responses API, as the events of a stream and as a whole."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

from culm.serve.account import Account
from culm.serve.answer import TextPiece
from culm.serve.http.responses import FlatChoice, FlatTool, ResponseRequest
from culm.text.message import Delta, MessageReader

Json = dict[str, Any]
PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}


class ResponseEvents:
    """Builds one response piece by piece; each piece gives the events that a stream shows.

    `response`: the response so far.
    """

    def __init__(self, body: ResponseRequest, thinking: bool) -> None:
        self._reader = MessageReader(thinking, calls=body.tool_use is not None)
        self._number = 0
        self._call = -1  # number of the call that is open
        self.response = _response(body)

    def opening(self) -> Iterator[Json]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def read(self, piece: TextPiece) -> Iterator[Json]:
        """Events of a piece of the only choice."""
        for delta in self._reader.read(piece.text, last=piece.finish is not None):
            yield from self._add(delta)

    def closing(self, finish: str | None, account: Account) -> Iterator[Json]:
        """Events after the last piece."""
        yield from self._close()
        cut = finish == "length"
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": int(time.time()),
            "usage": _usage(account),
        }
        if cut and self.response["output"]:
            self.response["output"][-1]["status"] = "incomplete"
        yield self._event(f"response.{self.response['status']}", response=self.response)

    # -----------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    @property
    def _item(self) -> Json | None:
        """The item that is open."""
        output = self.response["output"]
        return output[-1] if output and output[-1]["status"] == "in_progress" else None

    def _of_item(self, kind: str, item: Json, **fields: Any) -> Json:
        index = len(self.response["output"]) - 1
        return self._event(kind, item_id=item["id"], output_index=index, **fields)

    def _add(self, delta: Delta) -> Iterator[Json]:
        if delta.call:
            number, name, arguments = delta.call
            if number != self._call:
                self._call = number
                call_id = f"call_{secrets.token_hex(12)}"
                yield from self._open("function_call", call_id=call_id, name=name, arguments="")
            if arguments and (item := self._item):
                item["arguments"] += arguments
                yield self._of_item("response.function_call_arguments.delta", item, delta=arguments)
            return
        kind = "reasoning" if delta.reasoning else "message"
        if self._item is None or self._item["type"] != kind:
            role: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
            yield from self._open(kind, content=[], **role)
        yield from self._text(kind, delta.reasoning or delta.content)

    def _open(self, kind: str, **fields: Any) -> Iterator[Json]:
        yield from self._close()
        name = f"{PREFIXES[kind]}_{secrets.token_hex(12)}"
        item = {"type": kind, "id": name, "status": "in_progress", **fields}
        self.response["output"].append(item)
        index = len(self.response["output"]) - 1
        yield self._event("response.output_item.added", output_index=index, item=item)

    def _text(self, kind: str, text: str) -> Iterator[Json]:
        item = self._item
        assert item is not None
        if not item["content"]:
            item["content"].append(_part(kind))
            part = _part(kind)
            yield self._of_item("response.content_part.added", item, content_index=0, part=part)
        item["content"][0]["text"] += text
        yield self._of_item(f"response.{_named(kind)}.delta", item, content_index=0, delta=text,
                            **_scores(kind))  # fmt: skip

    def _close(self) -> Iterator[Json]:
        if (item := self._item) is None:
            return
        item["status"] = "completed"
        if item["type"] == "function_call":
            fields = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", item, **fields)
        elif item["content"]:
            kind, part = item["type"], item["content"][0]
            yield self._of_item(f"response.{_named(kind)}.done", item, content_index=0,
                                text=part["text"], **_scores(kind))  # fmt: skip
            yield self._of_item("response.content_part.done", item, content_index=0, part=part)
        index = len(self.response["output"]) - 1
        yield self._event("response.output_item.done", output_index=index, item=item)


def _named(kind: str) -> str:
    return "output_text" if kind == "message" else "reasoning_text"


def _part(kind: str) -> Json:
    more: Json = {"annotations": [], "logprobs": []} if kind == "message" else {}
    return {"type": _named(kind), "text": "", **more}


def _scores(kind: str) -> Json:
    return {"logprobs": []} if kind == "message" else {}


def _response(body: ResponseRequest) -> Json:
    choice = body.tool_choice
    form = body.text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": f"resp_{secrets.token_hex(12)}", "object": "response",
        "created_at": int(time.time()), "completed_at": None, "status": "in_progress",
        "background": False, "error": None, "incomplete_details": None,
        "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None, "model": body.model, "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "service_tier": "default", "store": False,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": form, "verbosity": "medium"},
        "tool_choice": choice.model_dump() if isinstance(choice, FlatChoice) else choice or "auto",
        "tools": [_tool(one) for one in body.tools], "top_logprobs": 0,
        "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": "disabled",
        "metadata": {},
    }  # fmt: skip


def _tool(given: FlatTool) -> Json:
    return {
        "type": "function", "name": given.name, "description": given.description,
        "parameters": given.parameters, "strict": bool(given.strict),
    }  # fmt: skip


def _usage(account: Account) -> Json:
    return {
        "input_tokens": account.prompt_tokens,
        "input_tokens_details": {"cached_tokens": account.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": account.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": account.prompt_tokens + account.generated_tokens,
    }
