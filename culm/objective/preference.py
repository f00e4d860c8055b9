"""Direct preference optimisation (arXiv 2305.18290) and its close relatives."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.reference import frozen, reference_of


class Preference(ObjectiveConfig):
    """loss: sigmoid (DPO), hinge (SLiC, arXiv 2305.10425) or ipo (arXiv 2310.12036).

    beta: strength of the tie to the reference model. smoothing: the fraction of labels that are
    assumed to be flipped (conservative DPO); for the sigmoid only. length: whether log-ratios are
    summed over the tokens of a completion or averaged. auto: averaged for ipo, as its authors and
    TRL do, and summed for the others.
    """

    reads: ClassVar[Reads] = "pairs"
    kind: Literal["preference"] = "preference"
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: PositiveFloat = 0.1
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    length: Literal["auto", "sum", "mean"] = "auto"

    @property
    def averages(self) -> bool:
        """Whether log-ratios are averaged over the tokens of a completion."""
        return self.length == "mean" or (self.length == "auto" and self.loss == "ipo")

    def build(self, model: Transformer, load: Load, seed: int) -> PreferenceObjective:
        return PreferenceObjective(self, model.eval())  # no dropout: it would move the margins


def preference_loss(margin: Tensor, config: Preference) -> Tensor:
    """Loss of each pair from its margin h = (log pi/ref)(chosen) - (log pi/ref)(rejected).

    margin: (N,), from sums or means over completion tokens (`Preference.averages`).
    """
    match config.loss:
        case "sigmoid":
            right, wrong = F.logsigmoid(config.beta * margin), F.logsigmoid(-config.beta * margin)
            return -(1 - config.smoothing) * right - config.smoothing * wrong
        case "hinge":
            return (1 - config.beta * margin).clamp_min(0)
        case "ipo":
            return (margin - 1 / (2 * config.beta)) ** 2


class PreferenceObjective(Objective):
    """Rows 2i and 2i + 1 of a batch are the chosen and the rejected completion of pair i."""

    def __init__(self, config: Preference, model: Transformer) -> None:
        super().__init__(model)
        self.config = config
        self.reference = reference_of(model)

    def loss(self, batch: Batch, context: Context) -> Loss:
        policy = self.model.logprobs(batch.tokens, batch.targets, context).sum(-1)  # (2N,)
        with frozen(self.model, self.reference) as reference:
            plain = context.unrecorded()
            fixed = reference.logprobs(batch.tokens, batch.targets, plain).sum(-1)
        ratio = policy - fixed
        if self.config.averages:
            ratio = ratio / (batch.targets >= 0).sum(-1).clamp_min(1)
        chosen, rejected = ratio[0::2], ratio[1::2]
        losses = preference_loss(chosen - rejected, self.config)
        beta = self.config.beta
        metrics = {
            "accuracy": (chosen > rejected).float().sum(),
            "margin": beta * (chosen - rejected).detach().sum(),
            "reward_chosen": beta * chosen.detach().sum(),
            "reward_rejected": beta * rejected.detach().sum(),
        }
        return Loss(
            {"preference": Term(losses.sum(), "pairs")},
            {name: Term(total, "pairs") for name, total in metrics.items()},
        )
