"""The answers of a model in a file, a line each, which another call completes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.engine.continuations import Likelihood
from culm.eval.questions import Answered
from culm.eval.responder import Generation
from culm.eval.turns import Asked
from culm.task.task import Question


@dataclass
class AnswersFile:
    """path: a JSONL file. model: what identifies the model, in each line.

    how, seed: of replies; an answer that was given in another way is not used again. scoring: of
    each task by its name, what else its scores depend on; empty where replies have none.
    """

    path: Path
    model: str
    how: Generation
    seed: int
    scoring: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            raise SettingError(f"out: {self.path} is a folder; name a file, such as answers.jsonl")

    def read(self, asked: Sequence[Asked]) -> dict[str, Answered]:
        """Answers that are there already, by the key of their question.

        Raises:
            SettingError: the file has answers of another model, or is no file of answers.
        """
        if not self.path.exists():
            return {}
        known = {self.key(task.name, question): (task.name, question) for task, question in asked}
        found = {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                if line["model"] != self.model:
                    raise SettingError(
                        f"{self.path}: it has answers of another model, {line['model']!r}; give "
                        "another file, or remove it"
                    )
                if line["key"] in known:
                    one = _answered(*known[line["key"]], line)
                    if len(one.scores) != (len(one.replies) if self.scoring else 0):
                        raise TypeError("a reply without a score")
                    found[line["key"]] = one
            except (json.JSONDecodeError, KeyError, TypeError):
                if number < len(lines):  # the last line is cut where a call was stopped
                    raise SettingError(
                        f"{self.path}: line {number} is no answer of an evaluation; remove it, or "
                        "give another file"
                    ) from None
        return found

    def write(self, answered: Sequence[Answered]) -> None:
        """Append answers."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._end_line()
        with self.path.open("a", encoding="utf-8") as file:
            for one in answered:
                line = {"model": self.model, "key": self.key(one.task, one.question), **_line(one)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _end_line(self) -> None:
        """Remove a line that was cut where a call was stopped."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

    def key(self, task: str, question: Question) -> str:
        """Of all that an answer depends on, the model excepted."""
        how = "" if question.options else (self.how, self.seed)
        facts = (
            task, question.prompt, question.answer, question.options, question.right, question.by,
            question.plain, question.stops, question.before, question.tools, how,
            question.fields, self.scoring.get(task),
        )  # fmt: skip
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _line(one: Answered) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "task": one.task, "prompt": one.question.prompt, "answer": one.question.answer,
        "replies": one.replies, "scores": one.scores, "tokens": one.tokens,
    }  # fmt: skip
    if one.cut:
        shown["cut"] = one.cut
    if one.likelihoods:
        shown["options"] = [option.continuation for option in one.question.options]
        shown["likelihoods"] = one.likelihoods
    return shown


def _answered(task: str, question: Question, line: dict[str, Any]) -> Answered:
    likelihoods = tuple(Likelihood(*one) for one in line.get("likelihoods", ()))
    replies, scores = tuple(line["replies"]), tuple(line["scores"])
    numbers = [*scores, *(one.logprob for one in likelihoods)]
    if (
        not replies
        or not all(isinstance(one, str) for one in replies)
        or not all(type(one) in (int, float) for one in numbers)
        or len(likelihoods) != len(question.options)
    ):
        raise TypeError("no answer to this question")
    cut = line.get("cut", 0)
    return Answered(task, question, replies, scores, line["tokens"], likelihoods, cut)
