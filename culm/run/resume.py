"""Resume a run from its newest checkpoint, if all that it depends on is as it was."""

from __future__ import annotations

from dataclasses import replace

from culm import log
from culm.config import SettingError, parse
from culm.files import sha256
from culm.run.assemble import Assembly
from culm.run.difficulty import SETTING as REFERENCE
from culm.run.difficulty import reference_path
from culm.run.patching import PATH as PATCHER
from culm.run.patching import patcher_path
from culm.run.reads import (
    SHOWN,
    TOKENIZER,
    check_ranks,
    check_unchanged,
    digest_of,
    is_read,
    tokenizer_digest,
)
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.store import Store
from culm.train.trainer import Batches

CLOSE = 0.01  # rates that differ by less are taken to be the same


def check_resumable(run: Assembly, then: Progress, data: str | None) -> None:
    """Refuse what `resume` would refuse of a checkpoint, and restore nothing.

    data: fingerprint of the data; None where it is not known before the run starts.

    Raises:
        SettingError: the data or a model that the run reads is not what it was.
    """
    _accept(run, then, Progress(0, 0, then.data if data is None else data, _reads(run)))


def resume(run: Assembly, store: Store, batches: Batches) -> Progress:
    """Restore the newest checkpoint, or start at step 0; every rank calls it.

    Raises:
        SettingError: the data or a model that the run reads is not what it was.
        CheckpointError: the checkpoint cannot be used.
    """
    settings = run.config.model_dump(mode="json")
    now = Progress(0, 0, batches.fingerprint, _reads(run), settings)
    check_ranks(now.reads, run.ranks)
    found = store.load(lambda then: _accept(run, then, now))
    if found is None:
        return now
    then, state = found
    batches.restore(then.step, state)
    log.say(f"Resuming {run.folder} after step {then.step}.")
    _say_new_rate(run.config, then)
    return replace(now, step=then.step, tokens=then.tokens)


def _reads(run: Assembly) -> dict[str, str]:
    """Digests of all models, of code and of the tokenizer, by the setting that names them."""
    reads = {TOKENIZER: tokenizer_digest(run.tokenizer), **run.load.digests, **_code(run)}
    reads |= {name: digest_of(path) for name, path in _for_batches(run.config).items()}
    if run.base is not None:
        reads[_base_name(run)] = run.base
    return reads


def _code(run: Assembly) -> dict[str, str]:
    """Digests of the code files that score answers of the model."""
    if run.config.train.objective.reads != "rollouts":
        return {}
    files = [file for reward in run.config.train.rewards for file in reward.files]
    return {f"train.reward.path={file}": sha256(file) for file in files}


def _for_batches(config: RunConfig) -> dict[str, str]:
    """Paths of models that decide what is read in which order or in which patches, by the names of
    their digests.
    """
    named = {PATCHER: patcher_path(config), REFERENCE: reference_path(config)}
    return {f"{name}={path}": path for name, path in named.items() if path is not None}


def _base_name(run: Assembly) -> str:
    start = run.config.start
    return "" if start is None else f"start={model_id(start)}"


def _needed(run: Assembly) -> set[str]:
    """Names of what the run reads and no checkpoint holds."""
    loaded = run.load.loaded
    needed = {TOKENIZER, *_code(run), *_for_batches(run.config)}
    needed |= {name for name, model in zip(run.load.names, loaded, strict=True) if is_read(model)}
    if run.objective.precomputes:
        needed.add(_base_name(run))  # from which they are computed again if their file is gone
    own = [model for model in run.objective.models().values() if model not in loaded]
    return needed | {_base_name(run)} if any(map(is_read, own)) else needed


def _accept(run: Assembly, then: Progress, now: Progress) -> None:
    check_unchanged(then.reads, now.reads, _needed(run), run.folder)
    if then.data != now.data:
        raise SettingError(
            f"{run.folder}: its checkpoint was trained on other data, or in another order "
            f"(fingerprint {then.data[:SHOWN]} then, {now.data[:SHOWN]} now: data.*, seed, "
            "train.batch_size, train.batch_ramp or train.context changed); give a new run another "
            "folder=..."
        )


def _say_new_rate(config: RunConfig, then: Progress) -> None:
    """Say if other settings make the learning rate jump where the run resumes."""
    try:
        before = parse(RunConfig, then.settings)
    except SettingError:  # of an older version, or none
        return
    was, now = _rate(before, then.step), _rate(config, then.step)
    if abs(now - was) <= CLOSE * was:
        return
    old, new = before.train, config.train
    pairs = {
        "steps": (old.steps, new.steps),
        "optimizer": (old.optimizer, new.optimizer),
        "schedule": (old.schedule, new.schedule),
    }
    changed = ", ".join(f"train.{name}" for name, (a, b) in pairs.items() if a != b)
    log.say(
        f"The learning rate of step {then.step + 1} is {now:.2g}; it would be {was:.2g} with the "
        f"settings of the checkpoint ({changed} changed). To stay there, use "
        f"train.optimizer.rate={was:.3g} train.schedule=constant."
    )


def _rate(config: RunConfig, step: int) -> float:
    """Of step `step` (from 0), or of the last one."""
    train = config.train
    at = min(step, train.steps - 1)
    return train.optimizer.rate * train.rates.factor(at, train.steps)
