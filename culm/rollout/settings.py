"""The `train.rollout` section of a run: how a model answers, and how often each answer is used."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from culm.config import Config, one_of
from culm.rollout.completer import EngineSampler
from culm.rollout.pass_rate import PassRange
from culm.rollout.remote import RemoteSampler


class RolloutConfig(Config):
    """group: completions of one prompt. temperature: of sampling, and so of the policy.

    max_tokens: limit of a completion. slots: completions that are sampled together; fewer need less
    memory. batches: batches that are sampled at once, each for a step. epochs: how often they are
    learned from; after the first step the ratios of policies are no longer one. resample: rounds in
    which groups of equal rewards are replaced by those of other prompts (dynamic sampling, arXiv
    2503.14476); 4 for the variant dapo, else 0, unless given. curriculum: ask questions that are
    neither too easy nor too hard for the policy, by their pass rates so far. shuffled: a control
    run, whose rewards are permuted over all completions so that nothing can be learned from them.
    sampler: who samples: the engine here, or a server (remote).
    """

    group: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    max_tokens: PositiveInt = 32
    slots: PositiveInt = 256
    batches: PositiveInt = 1
    epochs: PositiveInt = 1
    resample: NonNegativeInt | None = None
    curriculum: PassRange | None = None
    shuffled: bool = False
    # A run may go on with another one, so it is no part of what a run depends on (this repr).
    sampler: one_of(EngineSampler | RemoteSampler) = Field(  # type: ignore[valid-type]
        EngineSampler(), repr=False
    )

    @model_validator(mode="after")
    def _at_one(self) -> RolloutConfig:
        if self.sampler.kind == "remote" and self.temperature != 1:
            raise ValueError(
                "temperature: a server reports log-probabilities at temperature 1, whatever it "
                "samples at; use temperature=1 or sampler=engine"
            )
        return self

    @property
    def updates(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return self.batches * self.epochs
