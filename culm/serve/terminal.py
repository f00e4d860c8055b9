"""A chat at the terminal."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

from rich.console import Console

from culm.model.transformer import require_vocabulary
from culm.text.language_model import LanguageModel

HELP = """\
/reset   start a new dialogue
/help    this list
/exit    end the chat, like Ctrl-D
Ctrl-C interrupts an answer."""

# A model must not control the terminal: escape sequences start with one of these characters.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """Questions from `read`, answers to `console` as they are written.

    max_tokens, temperature, top_p and seed are those of `LanguageModel.chat`; the n-th answer uses
    seed + n. An interrupted answer stays in the dialogue up to where it stopped.
    """

    def __init__(
        self,
        model: LanguageModel,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        console: Console | None = None,
        read: Callable[[], str] | None = None,
    ) -> None:
        self._model, self._system = model, system
        self._max_tokens, self._temperature, self._top_p = max_tokens, temperature, top_p
        self._seed = seed
        self._console = console or Console(highlight=False)
        self._read = read or (lambda: self._console.input("[bold green]>[/] "))
        self._messages: list[dict[str, str]] = []

    def run(self) -> None:
        """Chat until the user exits.

        Raises:
            ValueError: the model has no chat template, or a scalar head.
        """
        # Fail now rather than at the first question.
        require_vocabulary(self._model.model)
        self._model.tokenizer.chat  # noqa: B018
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives the prompt line editing and history
        self._say("/help lists the commands, Ctrl-D exits.")
        self._reset()
        while True:
            try:
                line = self._read().strip()
            except KeyboardInterrupt:
                self._say("\nCtrl-D or /exit ends the chat.")
                continue
            except EOFError:
                self._console.print()
                return
            if line in ("/exit", "/quit", "/bye"):
                return
            self._obey(line)

    def _obey(self, line: str) -> None:
        match line:
            case "":
                pass
            case "/help" | "/?":
                self._say(HELP)
            case "/reset" | "/clear":
                self._reset()
                self._say("Started a new dialogue.")
            case _ if line.startswith("/"):
                self._say(f"There is no command {line.split()[0]}; /help lists all commands.")
            case _:
                self._answer(line)

    def _reset(self) -> None:
        system = {"role": "system", "content": self._system}
        self._messages = [system] if self._system else []  # type: ignore[list-item]

    def _answer(self, question: str) -> None:
        self._messages.append({"role": "user", "content": question})
        seed = None if self._seed is None else self._seed + len(self._messages)
        answer = ""
        try:
            for piece in self._model.chat_stream(
                self._messages, self._max_tokens, temperature=self._temperature,
                top_p=self._top_p, seed=seed,
            ):  # fmt: skip
                answer += piece
                self._show(piece)
        except KeyboardInterrupt:
            self._say(" (stopped)", end="")
        except ValueError as error:
            self._messages.pop()
            self._say(f"{error} (the dialogue so far included); /reset starts a new one.")
            return
        self._console.print()
        self._messages.append({"role": "assistant", "content": answer})

    def _show(self, text: str) -> None:
        shown = CONTROL.sub("", text)
        self._console.print(shown, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def _say(self, text: str, end: str = "\n") -> None:
        self._console.print(text, end=end, style="dim", markup=False, highlight=False)
