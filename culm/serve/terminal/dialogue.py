"""The messages of a chat, and the file that they are saved in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from culm.atomic import atomic
from culm.config import SettingError


class Dialogue:
    """system: a system message, "" for none."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._turns: list[dict[str, str]] = []
        self._file: Path | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._turns]

    def add(self, role: str, content: str) -> None:
        self._turns.append({"role": role, "content": content})

    @property
    def question(self) -> str | None:
        """The last one."""
        asked = (one["content"] for one in reversed(self._turns) if one["role"] == "user")
        return next(asked, None)

    def undo(self) -> None:
        """Take back the last question and its answer."""
        while self._turns and self._turns.pop()["role"] != "user":
            pass

    def clear(self) -> None:
        self._turns, self._file = [], None

    def save(self, name: str) -> Path:
        """Write a file that the chat page reads too; without a name, the one of this dialogue.

        Raises:
            SettingError: there is no name, or another file has it.
            OSError: it cannot be written.
        """
        path = Path(name).expanduser() if name else self._file
        if path is None:
            raise SettingError("give the file a name: /save chat.json")
        if path != self._file and path.exists():
            raise SettingError(f"{path} exists; give the file another name")
        with atomic(path) as fresh:
            text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
            fresh.write_text(text + "\n", encoding="utf-8")
        self._file = path
        return path

    def load(self, name: str) -> None:
        """Take the messages of a file, of this terminal or of the chat page.

        Raises:
            SettingError: it holds no messages of OpenAI's form.
            OSError: it cannot be read.
        """
        path = Path(name).expanduser()
        try:
            turns = [_turn(one) for one in json.loads(path.read_text("utf-8"))["messages"]]
        except (ValueError, LookupError, TypeError):
            raise SettingError(f"{path} holds no messages of a chat") from None
        self.system = "\n".join(one["content"] for one in turns if one["role"] == "system")
        self._turns = [one for one in turns if one["role"] != "system"]
        self._file = path


def _turn(given: dict[str, Any]) -> dict[str, str]:
    role, content = given["role"], given["content"]
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError("a turn that a terminal cannot show")
    return {"role": role, "content": content}
