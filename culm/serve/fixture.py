"""A model whose answers are written in a file, for tests of clients and protocols.

Everything but the choice of tokens is real: template, slots, sampling, grammars, stop strings. The
answer is the most likely text, with a probability near 1; a temperature of 0 gives it exactly.

    seconds_per_token: 0.01
    answers:
      - when: "user: .*weather"
        say: '<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>'
      - {when: "tool: ", say: It is sunny.}
      - {say: Hello!}

`when` is a regular expression that is searched in the last message, written `role: content`; the
first answer that fits is given, and one without `when` always fits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from culm.config import Config, SettingError, parse
from culm.engine.choose import Chooser
from culm.engine.engine import Engine
from culm.engine.request import Running
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer

CONTEXT = 32_768
LIKELY = 30.0  # logit of the next token of an answer; the others have 0
TURN = re.compile(r"<\|(system|user|assistant|tool)\|>")


class ScriptedAnswer(Config):
    say: str
    when: str = ""


class Script(Config):
    answers: tuple[ScriptedAnswer, ...]
    seconds_per_token: float = 0.0

    def answer(self, message: str) -> str:
        """To the last message, written `role: content`; nothing if no answer fits."""
        fits = (one.say for one in self.answers if re.search(one.when, message, re.DOTALL))
        return next(fits, "")


def read_script(path: str | Path) -> Script:
    """Read a script.

    Raises:
        SettingError: it cannot be read, or is not a script.
    """
    try:
        return parse(Script, yaml.safe_load(Path(path).read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path}: it cannot be read as a script: {error}") from None


class ScriptedModel(LanguageModel):
    """A tiny random model over bytes that says what a script says."""

    def __init__(self, script: Script) -> None:
        tokenizer = Bytes(specials=True).build()
        tiny = TransformerConfig(
            vocabulary=tokenizer.vocabulary, width=16, layers=1, context=CONTEXT,
            attention=(GQA(heads=1, head_dim=16),),
        )  # fmt: skip
        super().__init__(tiny.build(), tokenizer)  # its weights play no part
        self._script = script

    def engine(
        self, slots: int, length: int, step_tokens: int | None = None, prefix_tokens: int = 0
    ) -> Engine:
        engine = super().engine(slots, length, step_tokens, prefix_tokens)
        engine.chooser = ScriptedChooser(self._script, self.tokenizer)
        return engine


class ScriptedChooser(Chooser):
    """Makes the next token of the script the most likely one."""

    def __init__(self, script: Script, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer.vocabulary)
        self._script, self._tokenizer = script, tokenizer

    def sample(
        self, rows: Sequence[Running], logits: Tensor, outputs: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        scripted = torch.zeros_like(logits)
        for row, scores in zip(rows, scripted[:, 0], strict=True):
            answer = self._answer(row.request.prompt)
            said = len(row.output)
            scores[answer[said] if said < len(answer) else self._tokenizer.end_of_turn] = LIKELY
        time.sleep(self._script.seconds_per_token)
        return super().sample(rows, scripted, outputs)

    def _answer(self, prompt: Sequence[int]) -> list[int]:
        text = self._tokenizer.decode(prompt, specials=True)
        *_, role, content, _, _ = ["", "", "", *TURN.split(text)]
        message = f"{role}: {content.removesuffix('<|end|>')}"
        return self._tokenizer.encode(self._script.answer(message))
