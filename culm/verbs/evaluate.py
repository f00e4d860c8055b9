"""`culm eval`: what a model scores in the measures of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from culm.compose import compose
from culm.config import SettingError, parse
from culm.convert.load import read
from culm.eval.evaluation import Evaluation
from culm.eval.measure.measure import Subject
from culm.eval.measure.scores import Scores
from culm.eval.settings import EvalConfig


def show_evaluation(model: str, measures: str, questions: int | None, device: str) -> None:
    """Print each result, shares with their 95 % intervals.

    measures: the name of a file in configs/eval, or a path. Held-out text is not measured, since a
    model comes without its corpus. questions: distinct ones per task; None: as the file says.
    """
    settings = parse(EvalConfig, compose(measures, "eval").values, "eval")
    if questions is not None:
        settings = _with_questions(settings, questions)
    if not any(isinstance(one, Scores) and one.tasks for one in settings.measures.values()):
        raise SettingError(f"tasks: {measures} names no tasks; see configs/eval/tasks.yaml")
    transformer, tokenizer = read(model, device, mtp=False)
    subject = Subject(transformer.eval(), tokenizer, seed=settings.seed)
    table = Table("task", "exact match", "95 % interval", "questions", box=None)
    for row in _rows(Evaluation(settings, subject).run()):
        table.add_row(*row)
    Console(highlight=False).print(table)


def _with_questions(settings: EvalConfig, questions: int) -> EvalConfig:
    changed = {
        name: measure.model_copy(update={"questions": questions})
        for name, measure in settings.measures.items()
        if isinstance(measure, Scores)
    }
    return settings.model_copy(update={"measures": {**settings.measures, **changed}})


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A row for each accuracy; several of one result are named after their tasks."""
    for name, value in results.items():
        if not isinstance(value, Mapping):
            continue
        several = {} if "low" in value else value
        prefix = name.removesuffix("exact_match")
        named = {f"{prefix}{task}": accuracy for task, accuracy in several.items()}
        for shown, accuracy in (named or {name: value}).items():
            low, high = (100 * accuracy[bound] for bound in ("low", "high"))
            share, items = f"{100 * accuracy['value']:.1f} %", f"{accuracy['items']:,}"
            yield shown, share, f"{low:.1f} - {high:.1f}", items
