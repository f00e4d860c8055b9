"""How hard the examples of a corpus are for a reference model, computed once in a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from culm import log
from culm.atomic import atomic
from culm.config import SettingError
from culm.convert.load import load_model
from culm.data.difficulty import Examples, ReferenceLoss
from culm.data.order import Grading, Measure
from culm.data.prepared import Prepared
from culm.device import choose_device
from culm.dtype import DTYPES
from culm.engine.scoring import score
from culm.model.backend import place
from culm.model.transformer import Transformer
from culm.run.objective import precision_of
from culm.run.reads import digest_of
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer

NAME = "difficulty.npz"
SETTING = "data.curriculum.difficulty.model"
AT_ONCE = 256  # examples that are read before they are sorted by length


def reference_path(config: RunConfig) -> str | None:
    """The model whose losses are the difficulty of a run, if it has such a curriculum."""
    difficulty = config.data.curriculum and config.data.curriculum.difficulty
    return difficulty.model if isinstance(difficulty, ReferenceLoss) else None


def grading_of(config: RunConfig, tokenizer: Tokenizer) -> Grading | None:
    """The curriculum of a run with what measures its difficulty, if it has one."""
    curriculum = config.data.curriculum
    if curriculum is None:
        return None
    difficulty = curriculum.difficulty
    if not isinstance(difficulty, ReferenceLoss):
        return Grading(curriculum, difficulty.measure)
    return Grading(curriculum, _stored(config, tokenizer, difficulty.model))


def _stored(config: RunConfig, tokenizer: Tokenizer, path: str) -> Measure:
    """Reads the losses in the folder of the run; if they are of something else, computes them."""

    def measure(prepared: Prepared, examples: Examples) -> np.ndarray:
        try:
            digest = digest_of(path)
        except FileNotFoundError:
            reference(config, tokenizer, path)  # which says what is not there
            raise
        key, file = _key(prepared, examples, digest), Path(config.folder) / NAME
        known = _read(file, key)
        if known is None:
            model = reference(config, tokenizer, path)
            longest = int((examples.ends - examples.starts).max())
            if longest > model.config.context:
                raise SettingError(
                    f"{SETTING}: {path} reads {model.config.context} tokens, and an example has "
                    f"{longest}; use a model of a longer context, or a shorter train.context"
                )
            known = reference_losses(model, prepared, examples)
            if file.parent.is_dir():  # a plan writes nothing
                _write(file, key, known)
        return known

    return measure


def stored_losses(config: RunConfig, prepared: Prepared, examples: Examples) -> np.ndarray | None:
    """Of the reference model as it is now, where the folder of the run has them."""
    path = reference_path(config)
    assert path is not None
    return _read(Path(config.folder) / NAME, _key(prepared, examples, digest_of(path)))


def _key(prepared: Prepared, examples: Examples, digest: str) -> str:
    """Of the losses of a reference model with this digest."""
    facts = (prepared.fingerprint, digest, examples.ends.tobytes())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read(file: Path, key: str) -> np.ndarray | None:
    try:
        with np.load(file, allow_pickle=False) as found:
            return found["losses"] if str(found["key"]) == key else None
    except Exception:  # of a damaged file zipfile and NumPy raise many kinds
        return None


def _write(file: Path, key: str, losses: np.ndarray) -> None:
    with atomic(file) as fresh, fresh.open("wb") as out:
        np.savez(out, key=np.array(key), losses=losses)


def reference(config: RunConfig, tokenizer: Tokenizer, path: str) -> Transformer:
    """The model of a path, ready to score examples.

    Raises:
        SettingError: it cannot be read, gives no probabilities, or has another tokenizer.
    """
    try:
        model, own = load_model(path)
    except SettingError as error:
        raise SettingError(f"{SETTING}: {error}") from None
    if own.fingerprint != tokenizer.fingerprint:
        raise SettingError(
            f"{SETTING}: the tokenizer of {path} differs from that of the run, whose token ids it "
            "would read; use a model with the same one"
        )
    if model.config.head == "scalar":
        raise SettingError(f"{SETTING}: {path} has a scalar head; give a language model")
    device = choose_device(config.device)
    dtype = DTYPES[precision_of(config, device)]
    return place(model.eval(), device, dtype, config.train.attention_backend)


def reference_losses(model: Transformer, prepared: Prepared, examples: Examples) -> np.ndarray:
    """(N,) fp64, the mean loss per learned token in nats; 0 where nothing is learned."""
    losses = np.zeros(len(examples.starts))
    spans = list(zip(examples.starts.tolist(), examples.ends.tolist(), strict=True))
    with log.progress("difficulty", len(spans), "examples") as bar:
        for start in range(0, len(spans), AT_ONCE):
            read = [prepared.read(*span) for span in spans[start : start + AT_ONCE]]
            scores = score(model, [ids.tolist() for ids, _ in read])
            for number, (found, (_, learned)) in enumerate(zip(scores, read, strict=True), start):
                kept = found.cpu().double()
                if learned is not None:
                    kept = kept[torch.from_numpy(learned[1:].copy())]
                losses[number] = -float(kept.mean()) if len(kept) else 0.0
            bar.advance(len(read))
    return losses
