"""`culm plan`: what a run would do, need and learn from. Nothing is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from culm.config import Config, SettingError
from culm.device import choose_device
from culm.files import refuse_unwritable
from culm.model.transformer import Transformer
from culm.plan.target import target_of
from culm.run.initial import context_of, model_from_start, source_of
from culm.run.patching import model_settings
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint.folder import Progress, verify
from culm.train.run_folder import check
from culm.train.trackers.tracker import TrackerConfig
from culm.verbs.plan_checks import META, Findings
from culm.verbs.plan_needs import section, show_needs
from culm.verbs.preview import Corpus, preview
from culm.verbs.samples import show_samples


def show_plan(
    config: RunConfig, origins: dict[str, str], ranks: int = 1, target: str | None = None
) -> None:
    """Print settings, samples, needs and problems; writes in a temporary folder only.

    ranks: processes that would share the run, each on a device like the one here, or on a `target`
        of the table in `culm.plan.target`.

    Raises:
        SettingError: every problem that would end the run.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = Findings(config, ranks, target_of(target) if target else None)
    section(console, "Settings", settings_rows(config, origins))
    corpus = Corpus(config)
    model, tokenizer = found.attempt(lambda: _parts(config)) or (None, None)
    if config.model is not None:
        model = found.attempt(lambda: model_settings(config).build(device="meta"))
        tokenizer = found.attempt(lambda: corpus.tokenizer)
    context = (found.attempt(lambda: context_of(config, model)) if model else None) or 0
    seen = None
    with TemporaryDirectory() as temporary:
        if tokenizer is not None and context:
            seen = found.attempt(
                lambda: preview(config, tokenizer, corpus, Path(temporary), context, ranks)
            )
        if seen is not None:
            section(console, "Learned from", seen.facts)
            show_samples(console, seen.samples)
        then = _check_folder(console, found)
        device = META if target else found.attempt(lambda: choose_device(config.device))
        if model is not None and device is not None and context:
            show_needs(console, found, model, tokenizer, device, context, seen, then)
    if found.problems:
        raise SettingError("this run cannot start:\n" + "\n".join(found.problems))
    if found.unread:
        console.print("\nNot read from here, so this plan says nothing of the data:")
        console.print("\n".join(found.unread), markup=False)
    console.print("No problem found. Start it with `culm train` and the same settings.")


def _check_folder(console: Console, found: Findings) -> Progress | None:
    """What is in the folder of the run, and whether its results can be reported.

    Returns the checkpoint from which the run would resume.
    """
    config, folder = found.config, Path(found.config.folder)
    found.attempt(lambda: check(folder, config, source_of(config)))
    if found.target is None:
        found.attempt(lambda: refuse_unwritable(folder))
    trackers: tuple[TrackerConfig, ...] = config.train.trackers
    for tracker in trackers:
        found.attempt(tracker.check)
    progress, damaged = found.attempt(lambda: verify(folder)) or (None, [])
    for one in damaged:
        console.print(f"\n{one.path}: damaged ({one.reason}); the run resumes from an earlier one.")
    if progress is not None:
        console.print(f"\nResumes after step {progress.step:,} of {config.train.steps:,}.")
    return progress


def _parts(config: RunConfig) -> tuple[Transformer | None, Tokenizer | None]:
    """Of the model that the run starts from, on the meta device."""
    if config.start is None:
        return None, None
    model, tokenizer = model_from_start(config)
    model.to("meta").tie()
    return model, tokenizer


def settings_rows(config: Config, origins: dict[str, str]) -> list[tuple[str, ...]]:
    """Name, value and origin of every setting."""
    leaves = _leaves(config.model_dump(mode="json"))
    return [(name, str(value), _origin(name, origins)) for name, value in leaves]


def _origin(name: str, origins: dict[str, str]) -> str:
    """Of the setting itself, of what it is a part of, or of its parts."""
    name = name.partition("[")[0]
    for known, origin in reversed(origins.items()):
        if f"{name}.".startswith(f"{known}.") or known.startswith(f"{name}."):
            return origin
    return "default"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                given = [f"{key}={part}" for key, part in (item or {}).items() if part is not None]
                yield f"{prefix}{name}[{index}]", ", ".join(given) or "none"
        elif value is not None:
            yield f"{prefix}{name}", value
