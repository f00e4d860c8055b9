"""Direct preference optimisation (arXiv 2305.18290) and its relatives, one name a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import inference_context
from culm.objective.reference import frozen, reference_of

PairLoss = Literal["sigmoid", "robust", "hinge", "ipo", "simpo", "orpo", "cpo", "apo_zero", "sppo"]


class Form(NamedTuple):
    """What a loss compares, and its usual settings.

    reference: log-ratios to the reference model, or else log-probabilities alone. length, beta,
    gamma, nll: the values of these settings where they are not given.
    """

    reference: bool = True
    length: Literal["sum", "mean"] = "sum"
    beta: float = 0.1
    gamma: float = 0.0
    nll: float = 0.0


FORMS: Mapping[str, Form] = {
    "sigmoid": Form(),
    "robust": Form(),
    "hinge": Form(),
    "ipo": Form(length="mean"),  # as its authors and TRL; the paper's equation sums
    "simpo": Form(reference=False, length="mean", beta=2.0, gamma=1.0),
    "orpo": Form(reference=False, length="mean", nll=1.0),
    "cpo": Form(reference=False, nll=1.0),
    "apo_zero": Form(),
    "sppo": Form(),
}
SMOOTHED = ("sigmoid", "robust", "cpo")
LOG_TWO, SMALLEST = math.log(2), 1e-7


class Preference(ObjectiveConfig):
    """loss: sigmoid (DPO), robust (arXiv 2403.00409), hinge (SLiC, arXiv 2305.10425), ipo (arXiv
    2310.12036), simpo (arXiv 2405.14734), orpo (arXiv 2403.07691), cpo (arXiv 2401.08417),
    apo_zero (arXiv 2408.06266) or sppo (arXiv 2405.00675).

    beta: strength of the tie to the reference model, or scale of the margin; for orpo the weight
    of its odds ratio. 0.1, for simpo 2. smoothing: the fraction of labels that are assumed to be
    flipped (conservative DPO, robust DPO); for sigmoid, robust and cpo. gamma: the margin that
    simpo asks for, 1 unless given; for others 0. length: whether log-ratios are summed over the
    tokens of a completion or averaged, as ipo, simpo and orpo do. nll: weight of the chosen
    completion's negative log-likelihood per token (arXiv 2404.19733); 1 for orpo and cpo, else 0.
    tail: weight of the tokens of the longer completion that are beyond the length of the shorter
    one; below 1 it weakens the preference for length (LD-DPO, arXiv 2409.06411). reference: where
    its log-probabilities come from: model, a frozen copy of the start, or under an adapter the
    model with the adapter switched off; or precomputed, once for all pairs before the first step,
    which needs no memory for a copy and no second forward in each step.
    """

    reads: ClassVar[Reads] = "pairs"
    kind: Literal["preference"] = "preference"
    loss: PairLoss = "sigmoid"
    beta: PositiveFloat = 0.1
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    gamma: NonNegativeFloat = 0.0
    length: Literal["sum", "mean"] = "sum"
    nll: NonNegativeFloat = 0.0
    tail: float = Field(1.0, ge=0, le=1)
    reference: Literal["model", "precomputed"] = "model"

    @property
    def columns(self) -> Mapping[str, Literal["row", "token"]]:
        return {"reference": "row"} if self.reference == "precomputed" else {}

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """With the usual settings of the loss where they are not given."""
        form = FORMS.get(values.get("loss", "sigmoid")) if isinstance(values, dict) else None
        if form is None:
            return values
        usual = form._asdict()
        del usual["reference"]
        return {**usual, **values}

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"smoothing: {self.loss} does not use it; {', '.join(SMOOTHED)} do")
        if self.gamma and self.loss != "simpo":
            raise ValueError(f"gamma: {self.loss} does not use it; simpo does")
        if self.tail < 1 and self.length == "mean":
            raise ValueError("tail: an average over tokens has no length to correct; length=sum")
        if self.reference == "precomputed" and not FORMS[self.loss].reference:
            raise ValueError(f"reference: {self.loss} compares with no reference; leave it out")
        return self

    def build(self, model: Transformer, load: Load, seed: int) -> PreferenceObjective:
        return PreferenceObjective(self, model.eval())  # no dropout: it would move the margins


def preference_loss(chosen: Tensor, rejected: Tensor, config: Preference) -> Tensor:
    """The loss of each pair, without the likelihood term. chosen, rejected: (N,).

    These are log-ratios to the reference, log pi/ref, or log-probabilities (`Form.reference`), as
    sums or means over completion tokens (`Preference.length`).
    """
    beta, smoothing = config.beta, config.smoothing
    margin = beta * (chosen - rejected)
    match config.loss:
        case "sigmoid" | "cpo":
            return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
        case "robust":
            right, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)
            return -((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)
        case "hinge":
            return (1 - margin).clamp_min(0)
        case "ipo":
            return (chosen - rejected - 1 / (2 * beta)).square()
        case "simpo":
            return -F.logsigmoid(margin - config.gamma)
        case "orpo":
            return -beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        case "apo_zero":
            return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()
        case "sppo":
            half = 1 / (2 * beta)
            return (chosen - half).square() + (rejected + half).square()


def log_odds(logprob: Tensor) -> Tensor:
    """log p / (1 - p) from log p, exact near both ends; p = 1 counts as a little less."""
    near = (-logprob.clamp(-LOG_TWO, -SMALLEST).expm1()).log()
    far = (-logprob.clamp_max(-LOG_TWO).exp()).log1p()
    return logprob - near.where(logprob > -LOG_TWO, far)


class PreferenceObjective(Objective):
    """Rows 2i and 2i + 1 of a batch are the chosen and the rejected completion of pair i."""

    def __init__(self, config: Preference, model: Transformer) -> None:
        super().__init__(model)
        self.config, self.compares = config, FORMS[config.loss].reference
        self._copied = self.compares and config.reference == "model"
        self.reference = reference_of(model) if self._copied else None

    @property
    def calls_twice(self) -> bool:
        return self._copied and self.reference is None

    @property
    def precomputes(self) -> tuple[str, ...]:
        return tuple(self.config.columns)

    def precompute(self, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities of each completion, as `loss` compares them."""
        reference = self._reference(batch, inference_context(batch))
        return {"reference": self._scores(reference, batch.targets >= 0)}

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, learned = self.config, batch.targets >= 0
        policy = self.model.logprobs(batch.tokens, batch.targets, context)  # (2N, T)
        ratio = policy - self._reference(batch, context) if self._copied else policy
        scores = self._scores(ratio, learned)
        if self.compares and not self._copied:
            scores = scores - batch.extra["reference"]
        chosen, rejected = scores[0::2], scores[1::2]
        terms = {"preference": Term(preference_loss(chosen, rejected, config).sum(), "pairs")}
        logprobs = policy.sum(-1)
        if config.nll:
            nll = -(logprobs / learned.sum(-1).clamp_min(1))[0::2].sum()
            terms["nll"] = Term(nll, "pairs", config.nll)
        metrics = {
            "accuracy": (chosen > rejected).float(),
            "margin": config.beta * (chosen - rejected),
            "reward_chosen": config.beta * chosen,
            "reward_rejected": config.beta * rejected,
            "logprob_chosen": logprobs[0::2],
            "logprob_rejected": logprobs[1::2],
        }
        found = {name: Term(values.detach().sum(), "pairs") for name, values in metrics.items()}
        return Loss(terms, found)

    def _scores(self, logprobs: Tensor, learned: Tensor) -> Tensor:
        """(2N, T) -> (2N,) sums or means over completions."""
        config = self.config
        if config.tail < 1:
            logprobs = logprobs * _weights(learned, config.tail)
        total = logprobs.sum(-1)
        return total / learned.sum(-1).clamp_min(1) if config.length == "mean" else total

    def _reference(self, batch: Batch, context: Context) -> Tensor:
        with frozen(self.model, self.reference) as reference:
            return reference.logprobs(batch.tokens, batch.targets, context.unrecorded())


def _weights(learned: Tensor, tail: float) -> Tensor:
    """(2N, T): 1 for the first tokens of both completions of a pair, as many as the shorter one
    has, and `tail` for the others.
    """
    shorter = learned.sum(-1).view(-1, 2).amin(1).repeat_interleave(2)
    first = learned.cumsum(-1) <= shorter[:, None]
    return first.float().where(first, tail)
