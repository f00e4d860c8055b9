"""Writes the policy of a run, as it is, for a server that samples from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from culm.adapt.lora import adapters_of
from culm.adapt.merge import merge
from culm.adapt.quantize.qat import convert
from culm.config import SettingError
from culm.convert import hf
from culm.convert.load import find_model
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig
from culm.run.start import model_id
from culm.run.whole import whole_models
from culm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class PolicyExport:
    """Writes a folder of Hugging Face, with adapters merged; every rank calls it. folder: of the
    run.
    """

    config: RunConfig
    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    ranks: Ranks

    def __call__(self, out: Path) -> None:
        model = policy_of(self.config, self.folder, self.model, self.ranks)
        if model is None:
            return
        self._refuse_start(out)
        if model.config.tied != self.model.config.tied:  # a server has read the shape at its start
            raise SettingError(
                "train.rollout.sampler.weights: merged adapters or quantised weights give the "
                "policy a head of its own, which the model of the server shares with its "
                "embedding; leave the head out of the targets of train.adapter or train.qat, or "
                "use train.rollout.sampler=engine"
            )
        hf.export(model, self.tokenizer, out, model.dtype)

    def _refuse_start(self, out: Path) -> None:
        """What a run starts from is needed again when it resumes."""
        if self.config.start is None:
            return
        place = find_model(model_id(self.config.start))
        if place.exists() and place.resolve() == out.resolve():
            raise SettingError(
                f"train.rollout.sampler.weights: {out} is the model that the run starts from; "
                "export that to another folder, and start the server there"
            )


def policy_of(
    config: RunConfig, folder: Path, policy: Transformer, ranks: Ranks
) -> Transformer | None:
    """The policy of a run as it would be used, whole and with adapters merged, on the rank that
    writes; every rank calls it. A copy, if it must be changed.
    """
    model = _whole(config, folder, policy, ranks)
    if model is not None and adapters_of(model):
        merge(model)
    if model is not None and config.train.qat is not None:
        convert(model)
    return model


def _whole(
    config: RunConfig, folder: Path, policy: Transformer, ranks: Ranks
) -> Transformer | None:
    found = whole_models(config, folder, {"model": policy}, ranks, lambda start: {"model": start})
    if found is None:
        return None
    model = found["model"]
    changed = config.train.adapter is not None or config.train.qat is not None
    return copy.deepcopy(model) if changed and model is policy else model
