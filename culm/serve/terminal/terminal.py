"""A chat at the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from culm.config import SettingError, parse
from culm.endpoint import EndpointError
from culm.serve.terminal.dialogue import Dialogue
from culm.serve.terminal.lines import Lines, Read, history_file, read_question
from culm.serve.terminal.models import ChatSettings, Responder
from culm.tools.function import HIDDEN

HELP = """\
/new               start a new dialogue
/retry             write the last answer again
/edit              change the last question and ask it
/undo              take back the last question and its answer
/system [TEXT]     show or set the system prompt; "" for none
/set [NAME VALUE]  show or change max_tokens, temperature, top_p, seed
/model [NAME]      show the models, or choose one
/tokens            how much of the context is used
/save [FILE]       write the dialogue to a file, /load FILE reads it
/help              this list
/quit              end the chat, like Ctrl-D
A line that ends in \\ goes on; three quotation marks start and end a longer question.
Ctrl-C interrupts an answer, a second one ends the chat."""


def plain(text: str) -> str:
    """A text without characters that a terminal obeys, or that hide or reorder others: escape
    sequences start with one of these."""
    return HIDDEN.sub("", text).encode("utf-8", "replace").decode()


@dataclass
class Said:
    """An answer so far."""

    content: str = ""
    reasoning: str = ""
    seconds: float = 0.0

    def json(self, model: str) -> dict[str, Any]:
        """As a message in OpenAI's form, with what is known of it."""
        thought = {"reasoning_content": self.reasoning} if self.reasoning else {}
        message = {"role": "assistant", "content": self.content, **thought}
        return {**message, "model": model, "seconds": round(self.seconds, 3)}


class Terminal:
    """Questions from `read`, answers to `console` as they are written.

    as_json: each answer is a line with one JSON object. An interrupted answer stays in the dialogue
    up to where it stopped.
    """

    def __init__(
        self,
        model: Responder,
        settings: ChatSettings = ChatSettings(),
        system: str = "",
        console: Console | None = None,
        read: Read | None = None,
        as_json: bool = False,
    ) -> None:
        self._model, self._settings, self._json = model, settings, as_json
        self._console = console or Console(highlight=False)
        # With JSON on standard output, what is for a person goes to standard error.
        self._person = Console(stderr=True, highlight=False) if as_json else self._console
        self._read = read
        self._dialogue = Dialogue(system)
        self._answers = 0
        self._interrupted = False
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(HELP), "new": self._new, "retry": self._retry,
            "edit": self._edit, "undo": self._undo, "system": self._system, "set": self._set,
            "model": self._choose, "tokens": self._tokens, "save": self._save, "load": self._load,
        }  # fmt: skip

    def ask_once(self, question: str) -> None:
        """One question, its answer and nothing else.

        Raises:
            ValueError, EndpointError: as `Responder.answer`.
        """
        self._dialogue.add("user", question)
        said = Said()
        self._said(said)
        self._end(said)

    def run(self) -> None:
        """Chat until the user ends it."""
        self._say("/help lists the commands, Ctrl-D ends the chat.")
        lines = None
        if self._read is None:
            lines = Lines(history_file(), self._person.is_terminal)
            self._read = lines.read
        try:
            self._loop()
        finally:
            if lines:
                lines.close()

    def _loop(self) -> None:
        while True:
            try:
                line = self._question()
            except KeyboardInterrupt:
                self._say("")
                if self._interrupted:
                    return
                self._interrupted = True
                self._say("Ctrl-C again or /quit ends the chat.")
                continue
            except EOFError:
                self._say("")
                return
            if line.strip() in ("/quit", "/exit", "/bye"):
                return
            self._interrupted = False
            self._obey(line)

    def _question(self, already: str = "") -> str:
        assert self._read is not None
        return read_question(self._read, already)

    def _obey(self, line: str) -> None:
        if not line.startswith("/"):
            if line.strip():
                self._answer(line.strip())
            return
        name, _, given = line[1:].partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            self._say(
                f"There is no command /{plain(name.strip())}; /help lists all. "
                "A question that starts with / needs a space before it."
            )
            return
        try:
            command(given.strip())
        except (SettingError, EndpointError, OSError) as error:
            self._say(plain(str(error)))

    # -- answers

    def _answer(self, question: str) -> None:
        self._dialogue.add("user", question)
        said = Said()
        try:
            self._said(said)
        except KeyboardInterrupt:
            self._interrupted = True
            self._say(" (stopped)")
            self._dialogue.add("assistant", said.content)
        except (ValueError, EndpointError) as error:
            if said.content:
                self._write("\n")
            self._dialogue.undo()
            self._say(f"{plain(str(error))} /new starts a new dialogue, /undo takes back a turn.")
        else:
            self._end(said)

    def _end(self, said: Said) -> None:
        if self._json:
            self._write(json.dumps(said.json(self._model.name)) + "\n")
        elif not said.content.endswith("\n") or self._console.is_terminal:
            self._write("\n")

    def _said(self, said: Said) -> None:
        """The next message, which is shown and kept in `said` as it comes."""
        self._answers += 1
        seed = self._settings.seed
        settings = self._settings.model_copy(
            update={"seed": None if seed is None else seed + self._answers}
        )
        begun = time.monotonic()
        for delta in self._model.answer(self._dialogue.messages, settings):
            if delta.reasoning and not self._json:
                self._think(delta.reasoning)
            if delta.content and not self._json:
                if said.reasoning and not said.content:
                    self._person.print("\n")
                self._write(plain(delta.content))
            said.content += delta.content
            said.reasoning += delta.reasoning
        said.seconds = time.monotonic() - begun
        self._dialogue.add("assistant", said.content)

    def _write(self, text: str) -> None:
        """Exactly this text: no markup, no emoji codes, no spaces for tabs."""
        self._console.file.write(text)
        self._console.file.flush()

    def _think(self, text: str) -> None:
        """Reasoning is for a person; a pipe gets the answer alone."""
        if self._console.is_terminal:
            self._console.print(Text(plain(text)), style="dim", end="", soft_wrap=True)

    def _say(self, text: str) -> None:
        self._person.print(Text(text), style="dim", soft_wrap=True)

    # -- commands

    def _new(self, _: str) -> None:
        self._dialogue.clear()
        self._say("Started a new dialogue.")

    def _retry(self, _: str) -> None:
        self._ask_instead(self._last())

    def _edit(self, _: str) -> None:
        last = self._last()
        try:
            changed = self._question(last).strip()
        except (EOFError, KeyboardInterrupt):
            changed = ""
        if changed:
            self._ask_instead(changed)

    def _undo(self, _: str) -> None:
        last = self._last()
        self._dialogue.undo()
        self._say(f"Took back: {last}")

    def _last(self) -> str:
        if self._dialogue.question is None:
            raise SettingError("There is no question yet.")
        return self._dialogue.question

    def _ask_instead(self, question: str) -> None:
        self._dialogue.undo()
        self._answer(question)

    def _system(self, text: str) -> None:
        if text:
            self._dialogue.system = "" if text == '""' else text
        self._say(plain(self._dialogue.system) or "There is no system prompt.")

    def _set(self, given: str) -> None:
        values = self._settings.model_dump()
        name, _, value = given.partition(" ")
        if name:
            if not value.strip():
                raise SettingError(f"give a value too: /set {name} 1; none takes it away")
            read = None if value.strip() == "none" else yaml.safe_load(value)
            values = {**values, name: read}
            self._settings = parse(ChatSettings, values, "set")
        shown = (f"{name} {'none' if one is None else one}" for name, one in values.items())
        self._say("\n".join(shown))

    def _choose(self, name: str) -> None:
        names = self._model.names()
        if name and name not in names:
            raise SettingError(f"There is no model {name}; there are: {', '.join(names)}")
        if name:
            self._model.choose(name)
        marks = ("* " if one == self._model.name else "  " for one in names)
        self._say("\n".join(mark + plain(one) for mark, one in zip(marks, names, strict=True)))

    def _tokens(self, _: str) -> None:
        used, context = self._model.used(self._dialogue.messages)
        of = f" of {context:,}" if context else ""
        self._say("Not known yet." if used is None else f"{used:,}{of} tokens of context")

    def _save(self, name: str) -> None:
        self._say(f"Saved to {self._dialogue.save(name)}.")

    def _load(self, name: str) -> None:
        if not name:
            raise SettingError("give the name of a file: /load chat.json")
        self._dialogue.load(name)
        for message in self._dialogue.messages:
            self._say(f"{message['role']}: {plain(message['content'])}")
