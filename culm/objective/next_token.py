"""Next-token prediction: pretraining and supervised fine-tuning, which differ in their data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from culm.batch import Batch, Loss, Reads, Term
from culm.model.ability import require_text
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.chunks import learned_rows, over_chunks
from culm.objective.objective import Load, Objective, ObjectiveConfig


class NextToken(ObjectiveConfig):
    """Negative log-likelihood of every learned target, in nats.

    Heads of multi-token prediction (`model.mtp`) are trained too; `mtp` is their mean loss.
    dft: weigh each token by its own probability, without gradient (dynamic fine-tuning, arXiv
        2508.05629): what the model finds impossible pulls less.
    smoothing: share of each target that all tokens have alike (label smoothing, arXiv 1512.00567).
    z_loss: weight of the square of the log of the softmax's denominator, which keeps logits small
        (arXiv 2204.02311; 1e-4 there).
    neftune: size of the noise on embeddings in training, 5 to 15 (NEFTune, arXiv 2310.05914).
    """

    reads: ClassVar[Reads] = "documents"
    trains_mtp: ClassVar[bool] = True
    kind: Literal["next_token"] = "next_token"
    dft: bool = False
    smoothing: float = Field(0.0, ge=0, lt=1)
    z_loss: NonNegativeFloat = 0.0
    neftune: NonNegativeFloat = 0.0

    def build(self, model: Transformer, load: Load, seed: int) -> NextTokenObjective:
        require_text(model)
        return NextTokenObjective(self, model.train())


class NextTokenObjective(Objective):
    """Sum of -log p(target), and of the tokens after it for heads of multi-token prediction."""

    def __init__(self, config: NextToken, model: Transformer) -> None:
        super().__init__(model)
        self.config = config

    @property
    def changes_embeddings(self) -> bool:
        return self.config.neftune > 0

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, mtp = self.config, self.model.config.mtp
        with noisy_embeddings(self.model, batch, config.neftune):
            states = self._states(batch, context)
        following, *further = self.model.logprobs_by_depth(states, batch.targets, batch.documents)
        nll, kept = -following.sum(), 1 - config.smoothing
        terms, metrics = {"nll": Term(nll, "targets", kept)}, {}
        if config.dft:
            weighed = -(following * following.detach().exp()).sum()  # 0 where nothing is learned
            terms = {"dft": Term(weighed, "targets", kept)}
            metrics = {"nll": Term(nll.detach(), "targets")}
        if config.smoothing or config.z_loss:
            terms |= self._regularisers(states[0], batch)
        if mtp is not None:
            heads = -torch.stack([one.sum() for one in further]).mean()
            terms["mtp"] = Term(heads, "targets", mtp.weight)
        return Loss(terms, metrics)

    def _states(self, batch: Batch, context: Context) -> list[Tensor]:
        """Those of the next token, and of each head of multi-token prediction."""
        if self.model.config.mtp is None:
            return [self.model.hidden(batch.tokens, context)]
        return self.model.mtp_hidden(batch.tokens, context)

    def _regularisers(self, hidden: Tensor, batch: Batch) -> dict[str, Term]:
        config = self.config
        uniform, squares = over_chunks(self._regularised, learned_rows(batch.targets), hidden)
        terms = {}
        if config.smoothing:
            terms["uniform"] = Term(uniform, "targets", config.smoothing)
        if config.z_loss:
            terms["z_loss"] = Term(squares, "targets", config.z_loss)
        return terms

    def _regularised(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of some states: the sum over tokens of -log p, on average over the vocabulary, and of the
        squared log of the denominator.
        """
        logits = self.model.logits(hidden)
        logsum = logits.logsumexp(-1)
        return (logsum - logits.mean(-1)).sum(), logsum.square().sum()


@contextmanager
def noisy_embeddings(model: Transformer, batch: Batch, size: float) -> Iterator[None]:
    """Add uniform noise to the embeddings of a batch: +-size / sqrt(L E) for each element.

    L: tokens of the document, without padding; E: elements of an embedding. The authors' code
    takes the length of the sample too, others that of the padded batch.
    """
    if not size or not model.training:
        yield
        return
    scale = (size * _lengths(batch) ** -0.5)[..., None] * model.config.width**-0.5

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * scale.to(output)

    handle = model.embed.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _lengths(batch: Batch) -> Tensor:
    """(B, T) fp32, tokens of the document that each token belongs to."""
    if batch.documents is None:
        last = batch.last + 1
        return last[:, None].float().expand(batch.tokens.shape)
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    return same.sum(-1).float()
