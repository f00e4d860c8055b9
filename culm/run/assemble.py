"""The parts of a run, each from its settings; `culm.run.train` puts them to work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from culm import log
from culm.config import SettingError
from culm.data.loader import Loader
from culm.data.manifest import Manifest
from culm.data.mixture import Mixture
from culm.data.order import Grading
from culm.data.prepare import prepare
from culm.data.prepared import ADVICE, Prepared, verify
from culm.data.stream.batches import StreamBatches
from culm.eval.evaluation import Evaluation
from culm.eval.measure.measure import Subject
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import TaskEnvironment
from culm.run.difficulty import grading_of
from culm.run.initial import context_of, initial_model
from culm.run.mixing import mixture_of, names_of, shares_in_words, verify_others
from culm.run.objective import ModelLoader, build_objective
from culm.run.policy_export import PolicyExport
from culm.run.reads import digest_of
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.run.streaming import stream_batches
from culm.tokenizer.tokenizer import Tokenizer

EVALUATED = 16  # held-out rows that are scored at once


@dataclass(frozen=True)
class Assembly:
    """What belongs to one run on one rank.

    context: tokens of a row. load: reads further models. base: digest of the model that the run
    starts from, if it does.
    """

    config: RunConfig
    folder: Path
    device: torch.device
    objective: Objective
    tokenizer: Tokenizer
    context: int
    load: ModelLoader
    base: str | None = None
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen

    @property
    def model(self) -> Transformer:
        """What is trained, evaluated and saved."""
        return self.objective.model


def assemble(
    config: RunConfig, folder: Path, device: torch.device, ranks: Ranks = Ranks()
) -> Assembly:
    """Model, tokenizer and objective as they are at step 0."""
    model, tokenizer = initial_model(config, folder)
    base = None if config.start is None else digest_of(model_id(config.start))
    context = context_of(config, model)
    load = ModelLoader(config, device, tokenizer)
    objective = build_objective(config, model, device, load)
    return Assembly(config, folder, device, objective, tokenizer, context, load, base, ranks)


def training_batches(run: Assembly) -> Loader | Mixture | StreamBatches | Rollouts:
    """What the loop reads: rows of a corpus, of several, of a stream, or what the model answers."""
    if run.config.train.objective.reads == "rollouts":
        return _rollouts(run)
    if run.config.data.stream is not None:
        stream = stream_batches(run.config, run.tokenizer, run.context, run.ranks)
        for remark in stream.remarks if run.ranks.writer else ():
            log.say(remark)
        return stream
    config, tokenizer = run.config, run.tokenizer
    if run.ranks.writer:
        verify(prepared_folder(config, tokenizer, run.folder))
        verify_others(config)
    run.ranks.wait()
    path = prepared_folder(config, tokenizer, run.folder)
    ids, known = Manifest.read(path).vocabulary, run.model.config.vocabulary
    if ids > known:
        raise SettingError(
            f"{path}: token ids up to {ids - 1}, but the model's vocabulary is {known}"
        )
    grading = grading_of(config, tokenizer)
    waits = grading is not None and not run.ranks.writer  # for what the writer computes and stores
    if waits:
        run.ranks.wait()
    rows = loader(config, tokenizer, path, run.context, run.ranks, "train", grading=grading)
    if not waits:
        run.ranks.wait()
    batches: Loader | Mixture = rows
    if config.data.mix:
        batches = mixture_of(config, rows, partial(_mixed_loader, run), run.ranks)
    for one in batches.corpora if isinstance(batches, Mixture) else [rows]:
        check_ends(one, tokenizer)
    for remark in _remarks(run, batches) if run.ranks.writer else ():
        log.say(remark)
    return batches


def _mixed_loader(run: Assembly, folder: Path) -> Loader:
    return loader(run.config, run.tokenizer, folder, run.context, run.ranks, "train")


def _remarks(run: Assembly, batches: Loader | Mixture) -> list[str]:
    """What is said of the data before the first step, a sentence each."""
    if not isinstance(batches, Mixture):
        return [f"Packing: {batches.packing}.", *batches.remarks]
    sizes = [one.rows for one in batches.corpora]
    packing = [
        f"Packing of {name}: {one.packing}."
        for name, one in zip(names_of(run.config), batches.corpora, strict=True)
    ]
    return [*shares_in_words(run.config, batches, sizes), *packing, *batches.remarks]


def prepared_folder(config: RunConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    """The prepared corpus; prepared now if it is not there. Runs of another seed hold out the same
    documents, so that they can be compared.
    """
    if config.data.corpus is not None:
        return config.data.corpus
    path, data = folder / "data", config.data
    if not path.exists():
        source = data.open(config.seed)
        prepare(
            source, data.format, tokenizer, path, data.held_out,
            duplicates=data.duplicates, invalid=data.invalid, difficulty=data.difficulty,
            cleaner=data.cleaner(path),
        )  # fmt: skip
    return path


def loader(
    config: RunConfig,
    tokenizer: Tokenizer,
    path: Path,
    context: int,
    ranks: Ranks,
    split: str,
    grading: Grading | None = None,
) -> Loader:
    """Rows of a prepared corpus, as the run needs them."""
    train, prepared = config.train, Prepared.open(path, split, tokenizer.fingerprint)
    manifest = prepared.manifest
    if manifest.template not in (None, tokenizer.template_fingerprint):
        raise SettingError(
            f"{path}: prepared with another chat template than the model's; {ADVICE}"
        )
    if manifest.gives != train.objective.reads:
        raise SettingError(
            f"train.objective: {train.objective.kind} learns from {train.objective.reads}, and "
            f"{path} holds {manifest.gives}, prepared from records of the format {manifest.format}"
        )
    train.objective.check_columns(manifest.columns)
    return Loader(
        prepared,
        context,
        train.batch_size,
        train.at_once if split == "train" else EVALUATED,
        config.seed,
        ranks.rank,
        ranks.count,
        config.data.packing,
        grading,
        train.batch_ramp,
    )


def held_out(run: Assembly) -> Loader | None:
    """The rows that are not trained on, if the corpus has some; the same for every rank."""
    path = run.config.data.corpus or run.folder / "data"
    if not path.exists() or "held_out" not in Manifest.read(path).splits:
        return None
    return loader(run.config, run.tokenizer, path, run.context, Ranks(), "held_out")


def evaluation_of(run: Assembly) -> Evaluation:
    """Measures the model of a run; each rank takes a share."""
    settings = run.config.eval
    subject = Subject(run.model, run.tokenizer, lambda: held_out(run), run.ranks, settings.seed)
    return Evaluation(settings, subject)


def check_ends(rows: Loader, tokenizer: Tokenizer) -> None:
    """A model of dialogues that never learns to end its turn would never stop."""
    if rows.dialogues and not rows.learns(tokenizer.stop_ids):
        raise SettingError(
            "train.context: no row learns the end of an answer, so the model would never stop; "
            "a longer context keeps whole dialogues"
        )


def _rollouts(run: Assembly) -> Rollouts:
    config, train = run.config, run.config.train
    rollouts = Rollouts(
        run.objective,
        run.tokenizer,
        [TaskEnvironment(task) for task in config.data.tasks],
        train.rollouts,
        run.load,
        rewards=train.rewards,
        batch_size=train.batch_size,
        micro_batch_size=train.at_once,
        seed=config.seed,
        context=run.context,
        ranks=run.ranks,
        compares=train.objective.least_group > 1,
        export=PolicyExport(config, run.folder, run.model, run.tokenizer, run.ranks),
    )
    rollouts.try_rewards()
    if run.device.type != "meta":  # a plan asks no server
        rollouts.check_sampler()
    for remark in rollouts.remarks if run.ranks.writer else ():
        log.say(remark)
    return rollouts
