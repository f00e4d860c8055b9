"""What an agent did: lines of JSON in a file, and lines for a person."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from culm.agent.loop import AgentEvent, QuestionAsked, StepAnswered, ToolCalled
from culm.config import SettingError
from culm.tools.function import HIDDEN, cut

SHOWN = 300  # characters of a call or a result


class TraceFile:
    """A `Listener` that appends a line to a file for each event.

    Raises:
        SettingError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="replace")
        except OSError as error:
            raise SettingError(f"{path}: the trace cannot be written: {error.strerror}") from None

    def __call__(self, event: AgentEvent) -> None:
        line = {"time": round(time.time(), 3), **facts_of(event)}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def facts_of(event: AgentEvent) -> dict[str, Any]:
    """An event in JSON; `kind` says which."""
    match event:
        case QuestionAsked():
            tools = {one["function"]["name"]: digest(one["function"]) for one in event.tools}
            facts = {"question": event.question, "tools": tools, "budget": asdict(event.budget)}
            return {"kind": "question", **facts}
        case StepAnswered():
            said = asdict(event.answer)
            return {"kind": "answer", "step": event.step, **said, "seconds": event.seconds}
        case ToolCalled():
            result = {"result": event.result.text, "failed": event.result.failed}
            call = {"step": event.step, **asdict(event.call), **result}
            return {"kind": "call", **call, "seconds": event.seconds}
        case _:
            return {"kind": "end", **asdict(event)}


def digest(definition: Any) -> str:
    """SHA-256 of the definition of a tool."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def steps_to(stream: TextIO) -> Callable[[AgentEvent], None]:
    """A `Listener` that shows a person the calls, what came back, and how it ended."""

    def show(event: AgentEvent) -> None:
        match event:
            case StepAnswered(answer=answer) if answer.calls and answer.content.strip():
                stream.write(f"[{event.step}] {_line(answer.content)}\n")
            case ToolCalled(call=call, result=result):
                stream.write(f"[{event.step}] {_line(f'{call.name} {call.arguments}')}\n")
                stream.write(f"    -> {_line(result.text)}\n")
        stream.flush()

    return show


def _line(text: str) -> str:
    """One line, without characters that a terminal obeys."""
    return cut(HIDDEN.sub("\ufffd", " ".join(text.split())), SHOWN).replace("\n", " ")
