"""A sentence autoencoder: each sentence is written from its concept (arXiv 2412.08821).

loss = -log p(tokens of a sentence | its concept + noise)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from culm.batch import Batch, Loss, Reads, Term
from culm.concept.model import ConceptModel
from culm.config import SettingError
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig


class ConceptAutoencoder(ObjectiveConfig):
    """It has no settings: the noise is one of the model (`model.noise`)."""

    reads: ClassVar[Reads] = "sentences"
    reads_concepts: ClassVar[bool] = True
    kind: Literal["concept_autoencoder"] = "concept_autoencoder"

    @property
    def optional_columns(self) -> Collection[str]:
        return ("place",)  # by which rows are made

    def build(self, model: Transformer, load: Load, seed: int) -> ConceptAutoencoderObjective:
        if not isinstance(model, ConceptModel):
            raise SettingError(
                "model.kind: concept_autoencoder trains a model with an encoder of sentences; use "
                "model=concepts"
            )
        if model.network is not None:
            raise SettingError(
                "start: this model has a network over its concepts, which would be other ones "
                "after more training; start from its autoencoder"
            )
        return ConceptAutoencoderObjective(model.train())


class ConceptAutoencoderObjective(Objective):
    """Sum of -log p(token)."""

    model: ConceptModel

    def loss(self, batch: Batch, context: Context) -> Loss:
        hidden = self.model.hidden(batch.tokens, context)
        nll = -self.model.hidden_logprobs(hidden, batch.targets).sum()
        return Loss({"nll": Term(nll, "targets")})
