"""`culm eval`: exact match of a model on test questions."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from culm.config import SettingError, compose, parse
from culm.convert.load import read
from culm.eval.exact import answer, scores
from culm.eval.settings import EvalConfig


def show_evaluation(model: str, tasks: str, questions: int, device: str) -> None:
    """Print the share of right answers for each task, with its 95 % interval.

    tasks: the name of a file in configs/eval, or a path.
    """
    settings = parse(EvalConfig, compose(tasks, "eval").values, "eval")
    if not settings.tasks:
        raise SettingError(f"tasks: {tasks} names no tasks; see configs/eval/tasks.yaml")
    transformer, tokenizer = read(model, device, mtp=False)
    answered = answer(
        transformer.eval(), tokenizer, settings.tasks, questions, settings.seed,
        settings.max_tokens,
    )  # fmt: skip
    table = Table("task", "exact match", "95 % interval", "questions", box=None)
    for name, score in scores(answered).items():
        interval = f"{100 * score.low:.1f} - {100 * score.high:.1f}"
        table.add_row(name, f"{100 * score.value:.1f} %", interval, f"{score.items:,}")
    Console(highlight=False).print(table)
