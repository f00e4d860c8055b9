"""Direct preference optimisation (arXiv 2305.18290) and its close relatives."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from culm.adapt.lora import disabled, is_adapter_only
from culm.batch import Batch, Loss
from culm.config import Config
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.experts import watching, with_experts


class Preference(Config):
    """loss: sigmoid (DPO), hinge (SLiC, arXiv 2305.10425) or ipo (arXiv 2310.12036).

    beta: strength of the tie to the reference model. smoothing: the share of labels that are
    taken to be flipped (conservative DPO); for the sigmoid only.
    """

    on_policy: ClassVar[bool] = False
    pairs: ClassVar[bool] = True
    kind: Literal["preference"] = "preference"
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: PositiveFloat = 0.1
    smoothing: float = Field(0.0, ge=0, lt=0.5)

    def build(self, model: Transformer) -> PreferenceObjective:
        return PreferenceObjective(self, model)


def preference_loss(margin: Tensor, config: Preference) -> Tensor:
    """Loss of each pair from its margin h = (log pi/ref)(chosen) - (log pi/ref)(rejected).

    margin: (N,), sums over completion tokens; for ipo the paper's sums are used, not means.
    """
    match config.loss:
        case "sigmoid":
            right, wrong = F.logsigmoid(config.beta * margin), F.logsigmoid(-config.beta * margin)
            return -(1 - config.smoothing) * right - config.smoothing * wrong
        case "hinge":
            return (1 - config.beta * margin).clamp_min(0)
        case "ipo":
            return (margin - 1 / (2 * config.beta)) ** 2


class PreferenceObjective(nn.Module):
    """Rows 2i and 2i + 1 of a batch are the chosen and the rejected completion of pair i.

    The reference is the model with its adapters switched off, where nothing else learns, or a
    frozen copy of the start.
    """

    def __init__(self, config: Preference, model: Transformer) -> None:
        super().__init__()
        self.config, self.model = config, model.eval()  # no dropout: it would move the margins
        self.reference = None
        if not is_adapter_only(model):
            self.reference = copy.deepcopy(model).requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        context = watching(batch)
        policy = self._sums(self.model, batch, context)
        with torch.no_grad():
            plain = replace(context, routings=None)
            if self.reference is not None:
                reference = self._sums(self.reference, batch, plain)
            else:
                with disabled(self.model):
                    reference = self._sums(self.model, batch, plain)
        ratio = policy - reference
        chosen, rejected = ratio[0::2], ratio[1::2]
        losses = preference_loss(chosen - rejected, self.config)
        beta = self.config.beta
        metrics = {
            "accuracy": (chosen > rejected).float().sum(),
            "margin": beta * (chosen - rejected).detach().sum(),
            "reward_chosen": beta * chosen.detach().sum(),
            "reward_rejected": beta * rejected.detach().sum(),
        }
        return with_experts(Loss(losses.sum(), metrics), context)

    @staticmethod
    def _sums(model: Transformer, batch: Batch, context: Context) -> Tensor:
        return model.logprobs(batch.tokens, batch.targets, context).sum(-1)  # (2N,)
