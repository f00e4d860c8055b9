"""What a finished model was trained on, in words: for its card and the start of a chat."""

from __future__ import annotations

from pathlib import Path

from culm.convert.card import PLAIN_TEXT, THOUGHTS
from culm.data.manifest import Manifest
from culm.objective.coconut import Coconut
from culm.run.assemble import Assembly, prepared_folder
from culm.run.mixing import sources_of
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.task.task import Task

SHOWN = 8  # files or tasks by name; the others are counted
KINDS = {
    "sentences": "sentences", "pairs": "preferences", "rankings": "ranked answers",
    "labels": "labelled answers", "steps": "labelled steps", "thoughts": "worked answers",
    "rollouts": "rewards",
}  # fmt: skip


def trained_on(run: Assembly, earlier: tuple[str, ...]) -> tuple[str, ...]:
    """All stages of a run's model, the first one first.

    earlier: those of the model that it started from; none are known of one from elsewhere.
    """
    config = run.config
    if config.start is not None and not earlier:
        earlier = (f"the data of {Path(model_id(config.start)).name}",)
    objective = config.train.objective
    kind, source = KINDS.get(objective.reads), None
    others = list[str]()
    if isinstance(objective, Coconut) and objective.thinks:
        kind = THOUGHTS
    if config.data.stream is not None:
        kind = PLAIN_TEXT
    elif objective.reads != "rollouts":
        manifest = Manifest.read(prepared_folder(config, run.tokenizer, run.folder))
        kind = kind or (PLAIN_TEXT if manifest.template is None else "dialogues")
        source = manifest.source if config.data.corpus is not None else None
        others = list(sources_of(config))
    stage = f"{kind} ({', '.join([source or _names(config), *others])})"
    return earlier if earlier[-1:] == (stage,) else (*earlier, stage)


def _names(config: RunConfig) -> str:
    """Of files without their folders, of hub datasets, or of tasks."""
    paths = [Path(path).name if Path(path).exists() else path for path in config.data.path]
    tasks: tuple[Task, ...] = config.data.tasks
    names = paths or [task.name for task in tasks]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
