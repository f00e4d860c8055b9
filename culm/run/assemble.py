"""The parts of a run, each from its settings; `culm.run.train` puts them together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from culm import log
from culm.adapt.quantize.linear import is_quantized
from culm.adapt.quantize.qat import fake_quantize
from culm.config import SettingError
from culm.convert.weights import note_dropped_heads
from culm.data.loader import Loader
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.prepared import Prepared, verify
from culm.data.texts import texts_of
from culm.device import choose_precision
from culm.dtype import DTYPES
from culm.files import atomic
from culm.model.backend import place
from culm.model.transformer import Transformer
from culm.objective.grpo import GRPOObjective
from culm.objective.next_token import NextToken
from culm.parallel.parallelize import compile_blocks, recompute
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.run.settings import RunConfig
from culm.run.start import start_of
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary
from culm.tokenizer.train import BPE
from culm.train.trainer import Batches

EVALUATED = 16  # held-out rows that are scored at once


def initial_model(config: RunConfig, folder: Path) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer as they are at step 0, on the CPU."""
    if config.start is not None:
        return model_from_start(config)
    assert config.model is not None
    tokenizer = make_tokenizer(config, folder)
    check_vocabulary(tokenizer, config.model.vocabulary, "model.vocabulary")
    return config.model.build(config.seed), tokenizer


def model_from_start(config: RunConfig) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer that a run goes on from, without heads that it would not train."""
    assert config.start is not None
    model, tokenizer = start_of(config.start)
    if config.upcycle is not None:
        count = config.upcycle.apply(model, config.seed)
        log.say(f"The feed-forwards of {count} layers became experts.")
    if model.config.mtp is not None and not isinstance(config.train.objective, NextToken):
        note_dropped_heads(model)
        model.drop_mtp()
    return model, tokenizer


def context_of(config: RunConfig, model: Transformer) -> int:
    """Tokens of a row: the model's context, or less."""
    wanted, known = config.train.context, model.config.context
    if wanted is not None and wanted > known:
        raise SettingError(f"train.context: {wanted} is more than the model's context of {known}")
    return wanted or known


def make_tokenizer(config: RunConfig, folder: Path) -> Tokenizer:
    """The tokenizer of a new model, trained once and kept in the run folder."""
    path = folder / "tokenizer"
    if (path / "tokenizer.json").exists():
        return Tokenizer.load(path)
    if config.data.prepared is not None and config.tokenizer is None:
        return Tokenizer.load(config.data.prepared / "tokenizer")
    assert config.model is not None
    settings = config.tokenizer or BPE(vocabulary=config.model.vocabulary)
    tokenizer = settings.build(_texts(config))
    with atomic(path) as fresh:
        tokenizer.save(fresh)
    return tokenizer


def _texts(config: RunConfig) -> Iterator[str]:
    """The text of the run's corpus."""
    if config.data.prepared is not None:
        raise SettingError(
            "tokenizer: data.prepared holds no text to train one on; leave it out to take the one "
            "that the corpus was prepared with"
        )
    source = config.data.open(config.seed)
    with log.progress("tokenizer", source.size, "bytes") as bar:
        for text in texts_of(source, config.data.format):
            bar.advance(len(text.encode()))
            yield text


def prepared_folder(config: RunConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    """The prepared corpus; prepared now if it is not there."""
    if config.data.prepared is not None:
        return config.data.prepared
    path = folder / "data"
    if not path.exists():
        prepare(
            config.data.open(config.seed),
            config.data.format,
            tokenizer,
            path,
            config.data.held_out,
            config.seed,
        )
    return path


def loader(
    config: RunConfig, tokenizer: Tokenizer, path: Path, context: int, ranks: Ranks, split: str
) -> Loader:
    """Rows of a prepared corpus, as the run asks for them."""
    train, prepared = config.train, Prepared.open(path, split, tokenizer.fingerprint)
    if (prepared.manifest.group == 2) != train.objective.pairs:
        raise SettingError(
            f"train.objective: {train.objective.kind} does not learn from {path}, which was "
            f"prepared from records of the format {prepared.manifest.format}"
        )
    return Loader(
        prepared,
        context,
        train.batch_size,
        train.micro_batch_size or train.batch_size if split == "train" else EVALUATED,
        config.seed,
        ranks.rank,
        ranks.count,
        config.data.packing,
    )


def held_out(config: RunConfig, tokenizer: Tokenizer, folder: Path, context: int) -> Loader | None:
    """The rows that are not trained on, where the corpus has such; the same for every rank."""
    path = config.data.prepared or folder / "data"
    if not path.exists() or "held_out" not in Manifest.read(path).splits:
        return None
    return loader(config, tokenizer, path, context, Ranks(), "held_out")


def set_up(config: RunConfig, model: Transformer, device: torch.device) -> nn.Module:
    """The objective around the model: adapter or rounding, precision, backend, device."""
    train = config.train
    precision = choose_precision(device) if train.precision == "auto" else train.precision
    if train.adapter is None and is_quantized(model):
        raise SettingError(
            "train.adapter: quantised weights cannot be trained; take train.adapter=lora, or start "
            "from the model that they were made of"
        )
    if train.adapter is not None:
        count = train.adapter.apply(model, config.seed)
        log.say(f"Training adapters beside {count} layers; the weights below are frozen.")
    if train.qat is not None:
        count = fake_quantize(model, train.qat)
        log.say(f"Training {count} layers with their weights rounded in every forward.")
    place(model, device, DTYPES[precision], train.attention_backend, training=True)
    objective = train.objective.build(model)
    if train.activation_checkpointing:
        recompute(objective)
    if train.compile:
        compile_blocks(objective)
    return objective


def training_batches(
    config: RunConfig,
    objective: nn.Module,
    model: Transformer,
    tokenizer: Tokenizer,
    folder: Path,
    context: int,
    ranks: Ranks,
) -> tuple[Batches, str]:
    """What the loop reads, and the fingerprint of its order."""
    if config.train.objective.on_policy:
        assert isinstance(objective, GRPOObjective)
        return _rollouts(config, objective, tokenizer, ranks)
    if ranks.first:
        verify(prepared_folder(config, tokenizer, folder))
    ranks.wait()
    path = prepared_folder(config, tokenizer, folder)
    ids, known = Manifest.read(path).vocabulary, model.config.vocabulary
    if ids > known:
        raise SettingError(
            f"{path}: token ids up to {ids - 1}, but the model's vocabulary is {known}"
        )
    rows = loader(config, tokenizer, path, context, ranks, "train")
    check_ends(rows, tokenizer)
    if rows.truncated:
        log.say(
            f"{rows.truncated:,} documents are longer than {context} tokens and lose their end."
        )
    return rows, rows.fingerprint


def check_ends(rows: Loader, tokenizer: Tokenizer) -> None:
    """A model of dialogues that never learns to end its turn would never stop."""
    if rows.dialogues and not rows.learns(tokenizer.stop_ids):
        raise SettingError(
            "train.context: no row learns the end of an answer, so the model would never stop; "
            "a longer context keeps whole dialogues"
        )


def _rollouts(
    config: RunConfig, objective: GRPOObjective, tokenizer: Tokenizer, ranks: Ranks
) -> tuple[Rollouts, str]:
    train = config.train
    rollouts = Rollouts(
        objective,
        tokenizer,
        config.data.tasks,
        rows=train.batch_size,
        micro_rows=train.micro_batch_size or train.batch_size,
        seed=config.seed,
        ranks=ranks,
    )
    return rollouts, rollouts.fingerprint
