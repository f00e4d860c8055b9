"""Large Concept Models (arXiv 2412.08821): the next sentence as a vector.

The autoencoder is the start of the run; it is frozen, and saved with the network that is trained on
its concepts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from culm.adapt.lora import adapters_of
from culm.batch import Batch, Loss, Reads, Term
from culm.concept.model import ConceptModel
from culm.concept.network import Chances, NetworkConfig
from culm.concept.one_tower import OneTower
from culm.concept.quantized import Quantized
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.config import SettingError
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.parallel.ranks import Ranks

N = TypeVar("N", bound=NetworkConfig)


class LCM(ObjectiveConfig):
    """autoencoder: folder of a run of `culm train concept-autoencoder`, from which the run starts.

    The other settings are those of the network (`culm.concept`).
    """

    reads: ClassVar[Reads] = "sentences"
    reads_concepts: ClassVar[bool] = True
    autoencoder: str = Field(min_length=1)

    @property
    def optional_columns(self) -> Collection[str]:
        return ("place",)  # by which rows are made

    @property
    @abstractmethod
    def network(self) -> NetworkConfig: ...

    def build(self, model: Transformer, load: Load, seed: int) -> LCMObjective:
        if not isinstance(model, ConceptModel):
            raise SettingError(
                f"train.objective.autoencoder: {self.autoencoder} is a language model without an "
                "encoder of sentences; give a run of culm train concept-autoencoder"
            )
        if adapters_of(model):
            raise SettingError(
                "train.adapter: an LCM trains a network of its own on frozen weights; leave it out"
            )
        new = model.network is None
        if model.network is None:
            model.attach(self.network, seed)
        elif model.config.network != self.network:
            raise SettingError(
                f"train.objective: {self.autoencoder} has a network with other settings "
                f"({model.network.config.kind}); give these, or its autoencoder"
            )
        model.requires_grad_(False)
        assert model.network is not None
        model.network.requires_grad_(True)
        return LCMObjective(model.train(), seed, new)


class BaseLCM(LCM, Base):
    """Mean squared error."""

    kind: Literal["base"] = "base"

    @property
    def network(self) -> Base:
        return _part(self, Base)


class OneTowerLCM(LCM, OneTower):
    """Diffusion in one Transformer."""

    kind: Literal["one_tower"] = "one_tower"

    @property
    def network(self) -> OneTower:
        return _part(self, OneTower)


class TwoTowerLCM(LCM, TwoTower):
    """Diffusion with a contextualizer and a denoiser."""

    kind: Literal["two_tower"] = "two_tower"

    @property
    def network(self) -> TwoTower:
        return _part(self, TwoTower)


class QuantizedLCM(LCM, Quantized):
    """Codes of residual vector quantisation."""

    kind: Literal["quantized"] = "quantized"

    @property
    def network(self) -> Quantized:
        return _part(self, Quantized)


def _part(given: LCM, kind: type[N]) -> N:
    """The settings of the network among those of the objective."""
    return kind(**{name: value for name, value in given if name in kind.model_fields})


class LCMObjective(Objective):
    """The terms of the network, on the concepts of a frozen encoder.

    The noise of a network depends on the seed, the step and the place of a row in it, so any number
    of ranks learns from the same.

    new: whether the network is, so that what it reads and predicts is yet to be scaled.
    """

    model: ConceptModel

    def __init__(self, model: ConceptModel, seed: int, new: bool = True) -> None:
        super().__init__(model)
        self.seed, self.new = seed, new

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """With the `Chances` of its rows."""
        place, prepared = ranks.rank * sum(len(batch.tokens) for batch in batches), []
        for batch in batches:
            rows = len(batch.tokens)
            chances = Chances.of(self.seed, number, range(place, place + rows))
            extra = {
                "noise_seed": torch.tensor(chances.seeds),
                "estimated": torch.full((rows,), chances.estimated),
            }
            prepared.append(replace(batch, extra={**batch.extra, **extra}))
            place += rows
        return prepared

    def loss(self, batch: Batch, context: Context) -> Loss:
        terms = self.model.network_loss(batch.tokens, context.unrecorded(), _chances(batch))
        return Loss({name: Term(total, "successors") for name, total in terms.items()})

    def calibrate(self, batches: Iterator[Batch], seed: int) -> None:
        """Fit the normaliser to concepts of the training data, then what the network quantises. A
        network that was trained before keeps those that its weights were trained with.

        Raises:
            SettingError: a row has more sentences than the network reads.
        """
        network = self.model.network
        assert network is not None
        found = [self._calibration(batch.to(self.model.device)) for batch in batches]
        if not self.new:
            return
        concepts = torch.cat(found)
        self.model.normalizer.fit(concepts)
        network.calibrate(self.model.normalizer(concepts), seed)

    def _calibration(self, batch: Batch) -> Tensor:
        """(N, C): the concepts of a batch."""
        context = Context(batch.positions, batch.documents, padding=batch.padding)
        with torch.no_grad():
            concepts, present = self.model.concepts(batch.tokens, context)
        assert self.model.network is not None
        most, limit = int(present.sum(1).max()), self.model.network.config.trunk.context
        if most > limit:
            raise SettingError(
                f"train.objective.trunk.context: {limit}, but rows have up to {most} sentences; "
                f"give data.format.sentences={limit}, or the trunk a longer context"
            )
        return concepts[present]


def _chances(batch: Batch) -> Chances:
    """Those of `prepare_step`; any others in a plan, which computes no numbers."""
    if batch.tokens.is_meta:
        return Chances([0] * len(batch.tokens), estimated=True)
    seeds, estimated = batch.extra["noise_seed"], batch.extra["estimated"]
    return Chances(seeds.tolist(), bool(estimated[0]))
