"""Model and tokenizer of a run as they are at step 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from culm import log
from culm.config import SettingError
from culm.convert.weights import note_dropped_heads
from culm.data.origin import origin_of
from culm.data.texts import texts_of
from culm.model.transformer import Transformer
from culm.run.autoencoder import start_setting
from culm.run.patching import check_bytes, model_settings, read_patcher
from culm.run.settings import RunConfig
from culm.run.start import start_of
from culm.source.source import Source
from culm.tokenizer.rows import check_vocabulary
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.run_folder import save_tokenizer


def initial_model(config: RunConfig, folder: Path) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer before anything is put on or around them, on the CPU."""
    if config.start is not None:
        return model_from_start(config)
    assert config.model is not None
    if config.model.masked:
        raise SettingError(
            "model.masked: train.objective=masked_diffusion sets it, and adds a row for the mask; "
            "leave it out"
        )
    tokenizer = make_tokenizer(config, folder)
    check_vocabulary(tokenizer, config.model.vocabulary, "model.vocabulary")
    check_own_tokens(config, tokenizer, config.model.vocabulary)
    check_bytes(config.model, tokenizer)
    model = model_settings(config).build(config.seed)
    read_patcher(model, tokenizer, _sampled(config))
    return model, tokenizer


def model_from_start(config: RunConfig) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer that a run starts from, without heads that it would not train."""
    assert config.start is not None
    model, tokenizer = start_of(config.start, start_setting(config.train.objective))
    check_own_tokens(config, tokenizer, model.config.vocabulary)
    if config.upcycle is not None:
        count = config.upcycle.apply(model, config.seed)
        log.say(f"The feed-forwards of {count} layers became experts.")
    if config.extend is not None:
        before = model.config.context
        config.extend.apply(model)
        log.say(f"The context grew from {before} to {config.extend.context} tokens.")
    if model.config.mtp is not None and not config.train.objective.trains_mtp:
        note_dropped_heads(model)
        model.drop_mtp()
    return model, tokenizer


def check_own_tokens(config: RunConfig, tokenizer: Tokenizer, vocabulary: int) -> None:
    """Check that the model's vocabulary has rows for the tokens of the objective.

    Raises:
        SettingError: the tokenizer has a token in one of them.
    """
    objective, ids = config.train.objective, tokenizer.vocabulary
    if objective.own_tokens and ids + objective.own_tokens > vocabulary:
        raise SettingError(
            f"model.vocabulary: {vocabulary} rows are too few: the tokenizer has {ids} tokens and "
            f"{objective.kind} {objective.own_tokens} of its own; use a model with "
            f"{ids + objective.own_tokens} rows or more, or a tokenizer with fewer tokens"
        )


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
    if config.data.corpus is not None and config.tokenizer is None:
        return Tokenizer.load(config.data.corpus / "tokenizer")
    settings = config.new_tokenizer
    source = source_of(config)
    origin = {} if source is None else origin_of(source)
    tokenizer = settings.build(_texts(config, folder))
    save_tokenizer(folder, tokenizer, origin)
    return tokenizer


def _sampled(config: RunConfig) -> Iterator[str]:
    """The run's text as it is, for what is chosen by a part of it."""
    source = source_of(config)
    if source is None:
        raise SettingError(
            "model.patching.threshold: the run holds no text to choose it by; give it in nats"
        )
    yield from texts_of(source, config.data.format, config.data.invalid)


def source_of(config: RunConfig) -> Source | None:
    """The text of the run's corpus; None where it was prepared elsewhere, is a stream, or is not
    there any more: a run needs it once.
    """
    if config.data.corpus is not None or config.data.stream is not None:
        return None
    try:
        return config.data.open(config.seed)
    except SettingError:
        return None


def _texts(config: RunConfig, folder: Path) -> Iterator[str]:
    """The text of the run's corpus."""
    if config.data.corpus is not None:
        raise SettingError(
            "tokenizer: data.prepared holds no text to train one on; leave it out to use the one "
            "that the corpus was prepared with"
        )
    data, source = config.data, config.data.open(config.seed)
    cleaner = data.cleaner(folder / "data")  # the corpus that is prepared next is cleaned once
    with log.progress("tokenizer", source.size, "bytes") as bar:
        for text in texts_of(source, data.format, data.invalid, cleaner=cleaner):
            bar.advance(len(text.encode()))
            yield text
