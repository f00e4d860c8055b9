"""The base of every objective: what it learns from, which models it owns, and its loss.

A new objective is one file: a config that says what it reads and builds it, and a module with

    loss(batch, context) -> Loss          sums, each with the name of the count that divides it

Experts are handled here, once: `forward` gives `loss` a context in which every router records what
it did, adds their auxiliary losses, and `before_update` balances them. So are the auxiliary losses
and metrics of other parts (`culm.model.context.Record`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from culm.batch import Batch, Loss, Reads, Term
from culm.config import Config, SettingError
from culm.model.context import Context, Record, Routing
from culm.model.elsewhere import Elsewhere
from culm.model.mlp.moe import Router
from culm.model.transformer import Transformer
from culm.objective.experience import Experience
from culm.objective.experts import balance, routing_loss
from culm.parallel.ranks import Ranks

Load = Callable[[str, str], Transformer]  # (setting, path): a model, placed like the policy


class ObjectiveConfig(Config, ABC):
    """Settings of an objective.

    reads: what it learns from. documents: texts and dialogues; sentences: texts, each sentence a
        document of its row; pairs: a chosen and a rejected answer, in rows 2i and 2i + 1; rankings:
        several answers to a question, each with a score; labels: single answers, each with a label;
        steps: answers in steps, each with a label; rollouts: answers of the model itself, with
        rewards. Data, plan, preview and run ask for this.
    head: the output head of the model that it trains.
    columns: what it needs in `Batch.extra`, one number a row or a token.
    trains_mtp: whether it trains heads of multi-token prediction. fills_masks: whether the model
        fills in masked tokens, instead of predicting the next one.
    reads_concepts: whether it trains models of concepts, and no others.
    own_tokens: number of its own tokens, which have the last rows of the model's vocabulary.
    """

    kind: str
    head: ClassVar[Literal["vocabulary", "scalar"]] = "vocabulary"
    trains_mtp: ClassVar[bool] = False
    fills_masks: ClassVar[bool] = False
    reads_concepts: ClassVar[bool] = False
    own_tokens: ClassVar[int] = 0

    @property
    @abstractmethod
    def reads(self) -> Reads: ...

    @property
    def columns(self) -> Mapping[str, Literal["row", "token"]]:
        return {}

    @property
    def optional_columns(self) -> Collection[str]:
        """Further columns that it uses where the data has them."""
        return ()

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuse columns of the data that would be without effect.

        Raises:
            SettingError: with the name of one.
        """
        if unused := set(columns) - self.columns.keys() - set(self.optional_columns):
            name = min(unused)
            raise SettingError(
                f"data.format.{name}: {self.kind} with these settings does not use the {name} of a "
                "record; leave it out"
            )

    @property
    def scores(self) -> int:
        """Numbers that its scalar head gives for a token."""
        return 1

    @classmethod
    def learners(cls) -> Mapping[Reads, str]:
        """What it can learn from, and how to name it for each."""
        reads: Any = cls.reads  # a class variable, except where a setting chooses it
        return {reads: cls.model_fields["kind"].default}

    @property
    def least_group(self) -> int:
        """Completions of one prompt that it compares, at least; for rollouts."""
        return 1

    @property
    def off_policy(self) -> bool:
        """Whether it can learn from answers of an older policy."""
        return False

    @property
    def resamples(self) -> int:
        """Rounds in which groups of equal rewards are replaced, unless the settings of rollouts say
        so.
        """
        return 0

    @abstractmethod
    def build(self, model: Transformer, load: Load, seed: int) -> Objective:
        """The objective around the model, which is already adapted and placed.

        load: reads another model: `load("train.objective.teacher", path)`. seed: of new weights.
        """


class Trained(nn.Module, ABC):
    """Batch -> Loss: all that the loop and checkpoints know of an objective. The parameters in it
    that require gradients are trained.
    """

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The sums of a batch, which the loop divides by its counts."""

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """The micro-batches of a step, with what must be known of the whole step before any of it
        is learned from; on the CPU. number: of the step. Every rank calls it.
        """
        return batches

    def moving(self) -> Collection[nn.Module]:
        """Parts that change without gradients, such as an average of the policy's weights.

        Checkpoints hold them, like what is trained.
        """
        return ()

    def resets_optimizer(self) -> bool:
        """Whether the state of the optimizer is dropped before this step."""
        return False

    def before_update(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Called between the gradients and the update of a step; gives further metrics.

        statistics: those of `Loss`, added up over the micro-batches and ranks of the step.
        """
        return {}


class Objective(Trained):
    """Batch -> Loss, around a Transformer.

    model: the policy: what is evaluated, saved and exported. Other models that it owns (a
    reference, a critic, a teacher) are attributes too.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def models(self) -> dict[str, Transformer]:
        """Every model by the name of its attribute, by which it is planned and saved."""
        return {name: m for name, m in self.named_children() if isinstance(m, Transformer)}

    def trained(self) -> dict[str, Transformer]:
        """Those of `models` with parameters that require gradients."""
        models = self.models().items()
        return {name: m for name, m in models if any(p.requires_grad for p in m.parameters())}

    @property
    def calls_twice(self) -> bool:
        """Whether the loss calls one model twice, as a policy that is its own reference with the
        adapter switched off; a pipeline cannot.
        """
        return False

    @property
    def changes_embeddings(self) -> bool:
        """Whether the loss adds something to the embeddings that a model reads."""
        return False

    def forward(self, batch: Batch) -> Loss:
        """The loss with the auxiliary losses of all experts and other parts."""
        context = Context(
            batch.positions, batch.documents, padding=batch.padding, routings=[], records=[]
        )
        loss = reported(self.loss(batch, context), context.records or ())
        if not context.routings:
            return loss
        routed = self.routed(context.routings)
        return replace(
            loss, terms={**loss.terms, **routed.terms},
            statistics={**loss.statistics, **routed.statistics},
        )  # fmt: skip

    def routed(self, routings: Sequence[Routing]) -> Loss:
        """The auxiliary loss of layers of experts, and their loads."""
        auxiliary, loads = routing_loss(routings)
        return Loss({"auxiliary": auxiliary}, statistics=loads)

    @abstractmethod
    def loss(self, batch: Batch, context: Context) -> Loss:
        """The sums of a batch; a model that is not trained takes `context.unrecorded()`."""

    def calibrate(self, batches: Iterator[Batch], seed: int) -> None:
        """Fit what is no weight to the data, such as the scale of an input; called once before the
        first step, and before a checkpoint is restored. Every rank calls it, with the same rows.
        """

    @property
    def precomputes(self) -> tuple[str, ...]:
        """Columns of `Batch.extra` that it computes once for a corpus, with `precompute`."""
        return ()

    def precompute(self, batch: Batch) -> dict[str, Tensor]:
        """A number for each row in each of these columns, from the model as it is at the start."""
        return {}

    def prepare(self, experience: Experience) -> Batch:
        """The rows to learn from, made once from a whole rollout, before it is split into steps.

        What the loss needs beyond tokens goes to `Batch.extra`.
        """
        raise TypeError(f"{type(self).__name__} does not learn from rollouts")

    def before_update(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Balance the experts."""
        return balance(self._routers(), statistics)

    def _routers(self) -> list[Router | None]:
        """The routers of the models that are trained, in the order in which they are called; None
        for one of another rank.
        """
        found: list[Router | None] = []
        for module in (part for model in self.trained().values() for part in model.modules()):
            if isinstance(module, Router):
                found.append(module)
            elif isinstance(module, Elsewhere):
                found += [None] * module.routers
        return found


def reported(loss: Loss, records: Sequence[Record]) -> Loss:
    """A loss with what parts of the model report: sums of equal names are one, over all tokens."""
    if not records:
        return loss
    terms, metrics = dict(loss.terms), dict(loss.metrics)
    for name in dict.fromkeys(record.name for record in records):
        same = [record for record in records if record.name == name]
        total, weight = torch.stack([record.total for record in same]).sum(), same[0].weight
        if weight is None:
            metrics[name] = Term(total.detach(), "tokens")
        else:
            terms[name] = Term(total, "tokens", weight)
    return replace(loss, terms=terms, metrics=metrics)
