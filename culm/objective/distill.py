"""Knowledge distillation (arXiv 1503.02531): a student learns the distributions of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.adapt.lora import plain
from culm.batch import Batch, Loss, Reads, Term
from culm.config import SettingError, refuse_unused
from culm.model.context import Context
from culm.model.init import generator
from culm.model.transformer import Transformer
from culm.objective.chunks import learned_rows, over_chunks
from culm.objective.experience import ROUND, Experience
from culm.objective.objective import Load, Objective, ObjectiveConfig

Divergence = Literal["forward", "reverse", "jsd"]


class Distillation(ObjectiveConfig):
    """teacher: path of a model with the same tokenizer.

    divergence: forward, KL(teacher || student); reverse, KL(student || teacher), which seeks one
        mode; or jsd, generalised Jensen-Shannon (arXiv 2306.13649).
    beta: share of the teacher in the mixture that jsd compares both with.
    temperature: divides the logits of both; the loss is multiplied by its square.
    top_k: compare the teacher's most likely tokens alone, and all others as one.
    nll: weight of the negative log-likelihood of the tokens themselves.
    hidden: weight of the distance between the last states, those of the student in a learned
        projection. hidden_distance: mse, the mean squared difference; cosine, 1 - cosine, which
        leaves their lengths free (arXiv 1910.01108).
    """

    teacher: str = Field(min_length=1)
    divergence: Divergence = "forward"
    beta: float = Field(0.5, gt=0, lt=1)
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    nll: NonNegativeFloat = 0.0
    hidden: NonNegativeFloat = 0.0
    hidden_distance: Literal["mse", "cosine"] = "mse"

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        refuse_unused(self, "beta", self.divergence == "jsd", "divergence=jsd")
        refuse_unused(self, "hidden_distance", self.hidden > 0, "hidden")
        return self

    def build(self, model: Transformer, load: Load, seed: int) -> DistillObjective:
        teacher = load("train.objective.teacher", self.teacher)
        if teacher.config.head == "scalar":
            raise SettingError(
                f"train.objective.teacher: {self.teacher} has a scalar head; give a language model"
            )
        return DistillObjective(self, model.train(), teacher.eval().requires_grad_(False), seed)


class Distill(Distillation):
    """The student reads a corpus, and learns what the teacher expects next."""

    reads: ClassVar[Reads] = "documents"
    kind: Literal["distill"] = "distill"


class GKD(Distillation):
    """On-policy distillation (arXiv 2306.13649): the student answers, and learns what the teacher
    would have said at each of its tokens.
    """

    reads: ClassVar[Reads] = "rollouts"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = {}
    kind: Literal["gkd"] = "gkd"

    @property
    def off_policy(self) -> bool:
        return True  # the teacher corrects whatever was answered


def token_divergence(student: Tensor, teacher: Tensor, config: Distillation) -> Tensor:
    """(N,) fp32, in nats, from logits (N, V) of both."""
    log_q, log_p = (
        (logits.float() / config.temperature).log_softmax(-1) for logits in (student, teacher)
    )
    if config.top_k is not None and config.top_k < log_p.shape[-1]:
        kept = log_p.topk(config.top_k, -1).indices
        log_p, log_q = (_with_rest(log, kept) for log in (log_p, log_q))
    match config.divergence:
        case "forward":
            return _kl(log_p, log_q)
        case "reverse":
            return _kl(log_q, log_p)
        case "jsd":
            share = torch.tensor(config.beta)
            parts = torch.stack([log_p + share.log(), log_q + (1 - share).log()])
            mixed = parts.logsumexp(0)
            return config.beta * _kl(log_p, mixed) + (1 - config.beta) * _kl(log_q, mixed)


def hidden_distance(student: Tensor, teacher: Tensor, kind: Literal["mse", "cosine"]) -> Tensor:
    """(N,) from states (N, E) of both."""
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_rest(log: Tensor, kept: Tensor) -> Tensor:
    """(N, V) -> (N, K + 1): log-probabilities of K tokens, and of all others together."""
    rest = log.scatter(-1, kept, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log.gather(-1, kept), rest], -1)


class DistillObjective(Objective):
    """The divergence from the teacher at every learned token."""

    def __init__(
        self, config: Distillation, model: Transformer, teacher: Transformer, seed: int
    ) -> None:
        super().__init__(model)
        self.config, self.teacher = config, teacher
        widths = model.config.width, teacher.config.width
        self.projection = _projection(*widths, seed) if config.hidden else None
        self._padding = ROUND - 1 if config.reads == "rollouts" else 0  # at most, in every row

    def prepare(self, experience: Experience) -> Batch:
        """As it is: the teacher needs no reward."""
        if (lengths := experience.batch.lengths) is not None:
            self._check_length(int(lengths.max()))
        return experience.batch

    def _check_length(self, tokens: int) -> None:
        longest = self.teacher.config.context
        if tokens > longest:
            raise SettingError(
                f"train.objective.teacher: rows of {tokens} tokens are longer than the context of "
                f"{self.config.teacher}, {longest}; lower train.context"
            )

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, tokens = self.config, batch.tokens
        self._check_length(tokens.shape[1] - self._padding)
        hidden = self.model.hidden(tokens, context)
        with torch.no_grad():
            theirs = self.teacher.hidden(tokens, context.unrecorded())
        rows = learned_rows(batch.targets)
        total, agreed = over_chunks(self._compared, rows, hidden, theirs)
        square = config.temperature**2
        terms = {"divergence": Term(total * square, "targets")}
        if config.nll:
            nll = -self.model.hidden_logprobs(hidden, batch.targets).sum()
            terms["nll"] = Term(nll, "targets", config.nll)
        if self.projection is not None:
            ours, wanted = (one.flatten(0, 1)[rows].float() for one in (hidden, theirs))
            distances = hidden_distance(self.projection(ours), wanted, config.hidden_distance)
            terms["hidden"] = Term(distances.sum(), "targets", config.hidden)
        return Loss(terms, {"agreement": Term(agreed.float(), "targets")})

    def _compared(self, mine: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Of some states of both: the sum of divergences, and how often they agree on the most
        likely token.
        """
        student, teacher = self.model.logits(mine), self.teacher.logits(other)
        known = min(student.shape[-1], teacher.shape[-1])  # beyond are ids of no token
        student, teacher = student[..., :known], teacher[..., :known]
        same = (student.argmax(-1) == teacher.argmax(-1)).sum()
        return token_divergence(student, teacher, self.config).sum(), same


def _projection(width: int, wider: int, seed: int) -> nn.Module:
    """Between equal widths it starts as the identity."""
    weight = torch.empty(wider, width)
    weight.normal_(0.0, width**-0.5, generator=generator(seed, "distill.projection"))
    return plain(torch.eye(width) if width == wider else weight, None)
