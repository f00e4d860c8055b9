"""The composition root: from a run file to a trained model in a folder.

    runs/x/run.yaml        the settings, complete; itself a run file
    runs/x/data/           the prepared corpus, unless another folder was named
    runs/x/metrics.jsonl   one line a step
    runs/x/checkpoints/    where an interrupted run goes on
    runs/x/model/          final weights, tokenizer, chat template
    runs/x/report.md       what came of it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import NonNegativeInt
from torch import nn

from culm import log
from culm.adapt.lora import has_adapter, merge
from culm.config import Config, SettingError, compose_run, parse
from culm.convert import native
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.dist.launch import joined
from culm.dist.parallelize import Dist, Parallel, compile_blocks, recompute
from culm.dist.ranks import Ranks
from culm.eval.exact import answer, scores
from culm.eval.perplexity import predict
from culm.eval.settings import EvalConfig
from culm.language_model import LanguageModel
from culm.loading import read
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.grpo import GRPO, GRPOObjective
from culm.plan.device import DTYPES, choose_backend, choose_device, choose_precision
from culm.rollout import Rollouts
from culm.tokenizer import TokenizerConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE
from culm.train import checkpoint
from culm.train.guard import Interruption, locked
from culm.train.hooks import MetricsFile, checkpointing, every, show
from culm.train.memory import peak_bytes, reset_peak
from culm.train.pages import keep_pages
from culm.train.settings import TrainConfig
from culm.train.trainer import Batches, Hook, Step, Trainer


EVALUATED = 16  # held-out rows that are scored at once


class RunConfig(Config):
    """One run. start: a folder or file with the model and tokenizer that it begins from; without
    it, `model` is built new and `tokenizer` is trained on the data (its vocabulary is the model's
    if not given).
    """

    folder: str = "runs/run"
    seed: NonNegativeInt = 0
    device: str = "auto"
    start: str | None = None
    tokenizer: TokenizerConfig | None = None
    model: TransformerConfig | None = None
    data: DataConfig
    train: TrainConfig
    dist: Dist = Dist()
    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True)
class Result:
    """What a run came to. finished: it was not interrupted."""

    folder: Path
    finished: bool
    steps: int
    results: dict[str, Any]


def read_run(name: str | None, settings: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """A run file with `name=value` settings, and where each of its values came from."""
    composed = compose_run(name, settings)
    config = parse(RunConfig, composed.values)
    if (config.model is None) == (config.start is None):
        raise SettingError("model: give the settings of a new model, or start: a folder to go on from")
    return config, composed.origins


# ---------------------------------------------------------------------------------------------
# The parts of a run


def begin(config: RunConfig, folder: Path) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer as they are at step 0, on the CPU."""
    if config.start is not None:
        return read(config.start, "cpu", torch.float32)
    assert config.model is not None
    tokenizer = make_tokenizer(config, folder)
    if tokenizer.vocabulary > config.model.vocabulary:
        raise SettingError(
            f"model.vocabulary: {config.model.vocabulary} is less than the tokenizer's "
            f"{tokenizer.vocabulary}"
        )
    return config.model.build(config.seed), tokenizer


def make_tokenizer(config: RunConfig, folder: Path) -> Tokenizer:
    """The tokenizer of a new model, trained once and kept in the run folder."""
    place = folder / "tokenizer"
    if (place / "tokenizer.json").exists():
        return Tokenizer.load(place)
    assert config.model is not None
    settings = config.tokenizer or BPE(vocabulary=config.model.vocabulary)
    texts = (str(record.get("text", "")) for record in config.data.open())
    tokenizer = settings.build(texts)
    partial = place.with_name(".tokenizer.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save(partial)
    os.replace(partial, place)
    return tokenizer


def prepared_folder(config: RunConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    """The prepared corpus; prepared now if it is not there."""
    if config.data.prepared is not None:
        return config.data.prepared
    place = folder / "data"
    if not place.exists():
        prepare(
            config.data.open(), config.data.format, tokenizer, place, config.data.held_out, config.seed
        )
    return place


def loader(
    config: RunConfig, tokenizer: Tokenizer, place: Path, context: int, ranks: Ranks, split: str
) -> Loader:
    """Rows of a prepared corpus, as the run asks for them."""
    train = config.train
    return Loader(
        Prepared.open(place, split, tokenizer.fingerprint),
        context,
        train.rows,
        train.micro_rows or train.rows if split == "train" else EVALUATED,
        config.seed,
        ranks.rank,
        ranks.count,
        config.data.packing,
    )


def set_up(config: RunConfig, model: Transformer, device: torch.device) -> nn.Module:
    """The objective around the model: adapter, precision, backend, device."""
    train = config.train
    precision = choose_precision(device) if train.precision == "auto" else train.precision
    model.dtype = DTYPES[precision]
    model.set_backend(choose_backend(device))
    if train.adapter is not None:
        count = train.adapter.apply(model, config.seed)
        log.say(f"Training adapters beside {count} layers; the weights below are frozen.")
    model.to(device)
    objective = train.objective.build(model)
    if train.recompute:
        recompute(objective)
    if train.compile:
        compile_blocks(objective)
    return objective


def training_batches(
    config: RunConfig,
    objective: nn.Module,
    tokenizer: Tokenizer,
    folder: Path,
    context: int,
    ranks: Ranks,
) -> tuple[Batches, str]:
    """What the loop reads, and the fingerprint of its order."""
    train = config.train
    if isinstance(train.objective, GRPO):
        if not config.data.tasks:
            raise SettingError("data.tasks: an on-policy objective needs tasks to answer")
        assert isinstance(objective, GRPOObjective)
        rollouts = Rollouts(
            objective,
            tokenizer,
            config.data.tasks,
            rows=train.rows,
            micro_rows=train.micro_rows or train.rows,
            seed=config.seed,
            ranks=ranks,
        )
        facts = repr((config.data.tasks, config.seed, train.rows))
        return rollouts, hashlib.sha256(facts.encode()).hexdigest()
    if ranks.first:
        prepared_folder(config, tokenizer, folder)
    ranks.wait()
    rows = loader(config, tokenizer, prepared_folder(config, tokenizer, folder), context, ranks, "train")
    if rows.truncated:
        log.say(f"{rows.truncated:,} documents are longer than {context} tokens and lose their end.")
    return rows, rows.fingerprint


# ---------------------------------------------------------------------------------------------
# The verb


def seconds_per_step(config: RunConfig, steps: int = 3) -> float:
    """Time of one step of this run on this machine, from a trial that is thrown away.

    The corpus must be prepared. The first step, which warms up, is not counted.
    """
    device, folder = choose_device(config.device), Path(config.folder)
    model, tokenizer = begin(config, folder)
    objective = set_up(config, model, device)
    context = config.train.context or model.config.context
    batches, _ = training_batches(config, objective, tokenizer, folder, context, Ranks())
    optimizer = config.train.optimizer.build(objective)
    times: list[float] = []
    trainer = Trainer(
        Parallel(objective, 1, config.dist), optimizer, config.train.schedule,
        hooks=[lambda step: times.append(step.seconds)],
    )  # fmt: skip
    trainer.fit(batches, steps)
    return sum(times[1:]) / (steps - 1)


def train(config: RunConfig) -> Result:
    """Train to the end, or until interrupted; started again, go on where it stopped."""
    device = choose_device(config.device)
    folder = Path(config.folder)
    keep_pages()
    with joined(device) as ranks, _alone(folder, ranks):
        reset_peak()
        if ranks.first:
            _keep_settings(config, folder)
            if config.start is None:
                make_tokenizer(config, folder)
        ranks.wait()
        model, tokenizer = begin(config, folder)
        return _train(config, folder, model, tokenizer, device, ranks)


def _train(
    config: RunConfig,
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    device: torch.device,
    ranks: Ranks,
) -> Result:
    settings, context = config.train, config.train.context or model.config.context
    objective = set_up(config, model, device)
    parallel = Parallel(objective, ranks.count, config.dist)
    optimizer = settings.optimizer.build(objective)
    batches, fingerprint = training_batches(config, objective, tokenizer, folder, context, ranks)
    start = _resume(folder, objective, optimizer, fingerprint)
    measure = _Measure(config, model, tokenizer, folder, context, ranks)
    if start.step == 0:
        measure(0)

    def save(step: int, tokens: int) -> None:
        progress = checkpoint.Progress(step, tokens, fingerprint)
        checkpoint.save(
            folder, objective, optimizer, progress, keep=settings.checkpoint.keep, ranks=ranks
        )

    label = "reward" if isinstance(settings.objective, GRPO) else "loss"
    interruption = Interruption()
    with log.progress(folder.name, settings.steps, "steps") as bar, interruption.watching():
        bar.advance(start.step)
        hooks: list[Hook] = [show(bar, label), checkpointing(save, settings.checkpoint.every_steps)]
        if ranks.first:
            hooks.append(MetricsFile(folder / "metrics.jsonl", start.step))
        if config.eval.every_steps:
            hooks.append(every(config.eval.every_steps, measure.hook, at_end=False))
        trainer = Trainer(
            parallel, optimizer, settings.schedule,
            clip=settings.clip, ranks=ranks, hooks=hooks, stop=interruption,
        )  # fmt: skip
        began = time.perf_counter()
        finished = trainer.fit(batches, settings.steps, start.step, start.tokens)
    if finished < settings.steps:
        log.say(f"Stopped after step {finished}; the same command goes on from there.")
        return Result(folder, False, finished, {})
    seconds = time.perf_counter() - began
    results = measure(finished) | {
        "seconds": round(seconds, 3),
        "peak_bytes": peak_bytes(),
        "samples": _samples(config.eval, model, tokenizer),
    }
    return Result(folder, True, finished, _finish(folder, model, tokenizer, results, ranks))


def _samples(settings: EvalConfig, model: Transformer, tokenizer: Tokenizer) -> list[dict]:
    """Continuations of the sample texts, at each temperature."""
    language_model = LanguageModel(model, tokenizer)
    return [
        {
            "prompt": prompt,
            "temperature": temperature,
            "text": language_model.generate(
                prompt, settings.sample_tokens, temperature, seed=settings.seed
            ),
        }
        for prompt in settings.samples
        for temperature in settings.temperatures
    ]


def _finish(
    folder: Path, model: Transformer, tokenizer: Tokenizer, results: dict, ranks: Ranks
) -> dict:
    if has_adapter(model):
        merge(model)
    if ranks.first:
        native.save(model, tokenizer, folder / "model")
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    ranks.wait()
    return results


def _resume(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> checkpoint.Progress:
    progress = checkpoint.load(folder, objective, optimizer)
    if progress is None:
        return checkpoint.Progress(0, 0, fingerprint)
    if progress.data != fingerprint:
        raise SettingError(
            f"{folder}: its checkpoint was trained on other data, or in another order "
            "(data.*, seed, train.rows or train.context changed); give a new run another folder=..."
        )
    log.say(f"Resuming {folder} after step {progress.step}.")
    return progress


def _keep_settings(config: RunConfig, folder: Path) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "run.yaml").write_text(text)


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.first:
        yield
        return
    with locked(folder):
        yield


class _Measure:
    """Held-out bits per byte and exact match; one line a time in `eval.jsonl`."""

    def __init__(
        self,
        config: RunConfig,
        model: Transformer,
        tokenizer: Tokenizer,
        folder: Path,
        context: int,
        ranks: Ranks,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.folder, self.context, self.ranks = folder, context, ranks

    def hook(self, step: Step) -> None:
        if not step.last:
            self(step.number)

    def __call__(self, step: int) -> dict[str, Any]:
        """Every rank takes part, since a sharded model needs all of them; the first one writes."""
        found: dict[str, Any] = {"step": step}
        settings = self.config.eval
        rows = self._held_out()
        if rows is not None:
            prediction = predict(self.model, rows, self.tokenizer, settings.tokens)
            found |= {"loss": prediction.loss, "bits_per_byte": prediction.bits_per_byte}
        if settings.tasks:
            answered = answer(
                self.model, self.tokenizer, settings.tasks, settings.questions, settings.seed
            )
            found["exact_match"] = {n: asdict(s) for n, s in scores(answered).items()}
        if self.ranks.first and len(found) > 1:
            with (self.folder / "eval.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
        return found

    def _held_out(self) -> Loader | None:
        place = self.config.data.prepared or self.folder / "data"
        if not place.exists() or not self.config.data.held_out:
            return None
        return loader(self.config, self.tokenizer, place, self.context, Ranks(), "held_out")
