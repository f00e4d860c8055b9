"""The `train` section of a run: what is learned, from what, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from culm.adapt.hyplora import HypLoRA
from culm.adapt.lora import LoRA
from culm.adapt.quantize.qat import QAT
from culm.config import MAY_CHANGE, Config, MayChange, kind_unless_given, one_of
from culm.data.batch_ramp import BatchRamp, BatchSizes
from culm.model.score_rule import Backend
from culm.objective import Objective
from culm.objective.next_token import NextToken
from culm.optim import Optimizer, Schedule
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine
from culm.rollout.reward import Rewards
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.reward.score import TaskScore
from culm.rollout.settings import RolloutConfig
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.profile import ProfileConfig
from culm.train.push import PushConfig
from culm.train.rates import ByRows, RateSchedule
from culm.train.spikes import SpikeConfig
from culm.train.straggler import StragglerConfig
from culm.train.trackers import Trackers

Share = Annotated[float, Field(gt=0, lt=1)]
# Which server samples, and where it is: a run may go on with another one.
SAMPLER_MAY_CHANGE = MayChange(but=("", *(RolloutConfig.model_fields.keys() - {"sampler"})))


class TrainConfig(Config):
    """steps: optimizer steps. batch_size: sequences of a step, over all ranks and micro-batches; a
    pair counts as one.

    micro_batch_size: sequences that are computed at once; fewer need less memory and give the same
        result. batch_ramp: smaller batches in the first steps; the schedule then goes by the rows
        that were read.
    objective: what is learned, and so the loss. optimizer: the rule that updates the weights.
    optimizer_in_backward: update each parameter as soon as its gradient is complete, and drop the
        gradient, which saves the memory of all but one (arXiv 2306.09782).
    schedule: how the learning rate moves over the steps. checkpoint: how often the state is saved.
    context: tokens of a sequence; the model's, unless given. clip: maximum gradient norm; null: no
        limit. clip_by: whether that is the norm of the whole model, or of each group of the
        optimizer.
    precision: of activations. auto takes bf16 where it is the faster matmul precision of this
        machine. fp16, for GPUs without bf16, scales the loss (arXiv 1710.03740). fp8 has the
        matmuls of blocks in fp8 and the rest in bf16 (torchao). weights: precision of the weights
        and their gradients; bf16 halves their memory, updates are rounded stochastically (arXiv
        2010.06192), and gradients of micro-batches add up in bf16. Optimizer states stay in fp32.
    attention_backend: how attention is computed (`culm.model.attend`); auto takes one that passes a
        trial on this machine.
    compile: torch.compile each block. activation_checkpointing: what a block keeps for its
        backward: everything (none), the results of matmuls and of attention by SDPA (selective), or
        its input alone (full); or, with compile, a share of everything, such as 0.5, which the
        compiler chooses, and a plan does not count. The rest is computed again.
    adapter: train this on top of frozen weights. qat: quantise weights in every forward as `culm
        quantize --to` would, so that the model adapts to it; the final model is quantised.
    rollout: how the model answers, for objectives that read rollouts. reward: what an answer earns;
        several are added. The score of its task, unless given.
    spike: leave out the updates of steps with a loss or gradient norm far above the usual; without
        it only a step that is not finite is refused, and ends the run. straggler: when a slow rank
        is named. check_replicas_every: steps after which ranks compare their copies of weights and
        optimizer states bit for bit; the run ends if one differs. push: weights go to the Hugging
        Face hub while the run trains. profile: traces of some steps, in the folder of the run.
        trackers: where metrics and samples are reported to, besides the files in the folder.
        update_ratio_every: steps after which `update_ratio` is measured, the norm of the update
        over that of the weights.
    """

    steps: Annotated[PositiveInt, MAY_CHANGE]
    batch_size: PositiveInt = 32
    micro_batch_size: Annotated[PositiveInt | None, MAY_CHANGE] = None
    batch_ramp: BatchRamp | None = None
    context: PositiveInt | None = None
    objective: Objective = NextToken()
    rollout: Annotated[RolloutConfig | None, SAMPLER_MAY_CHANGE] = None
    reward: Rewards | None = None
    optimizer: Annotated[Optimizer, MayChange(but=("kind",))] = AdamW()
    schedule: Annotated[Schedule, MAY_CHANGE] = Cosine()
    adapter: Annotated[one_of(LoRA | HypLoRA) | None, kind_unless_given("lora")] = None  # type: ignore[valid-type]
    qat: QAT | None = None
    optimizer_in_backward: Annotated[bool, MAY_CHANGE] = False
    clip: Annotated[PositiveFloat | None, MAY_CHANGE] = 1.0
    clip_by: Annotated[Literal["model", "group"], MAY_CHANGE] = "model"
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16", "fp8"], MAY_CHANGE] = "auto"
    weights: Literal["fp32", "bf16"] = "fp32"
    attention_backend: Annotated[Backend | Literal["auto"], MAY_CHANGE] = "auto"
    compile: Annotated[bool, MAY_CHANGE] = False
    activation_checkpointing: Annotated[
        Literal["none", "selective", "full"] | Share, MAY_CHANGE
    ] = "none"
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()
    spike: Annotated[SpikeConfig | None, MAY_CHANGE] = None
    straggler: Annotated[StragglerConfig, MAY_CHANGE] = StragglerConfig()
    check_replicas_every: Annotated[PositiveInt | None, MAY_CHANGE] = None
    push: Annotated[PushConfig | None, MAY_CHANGE] = None
    trackers: Annotated[Trackers, MAY_CHANGE] = ()
    profile: Annotated[ProfileConfig | None, MAY_CHANGE] = None
    update_ratio_every: Annotated[PositiveInt | None, MAY_CHANGE] = 10

    @model_validator(mode="after")
    def _profiled(self) -> TrainConfig:
        if self.profile is not None and self.profile.first > self.steps:
            raise ValueError(
                f"profile.first: step {self.profile.first} is after the last one, {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _ramps(self) -> TrainConfig:
        ramp, full = self.batch_ramp, self.batch_size
        if ramp is None:
            return self
        if self.objective.reads == "rollouts":
            raise ValueError(
                f"batch_ramp: {self.objective.kind} learns from rollouts, all of batch_size; leave "
                "it out"
            )
        if ramp.start >= full:
            raise ValueError(f"batch_ramp.start: {ramp.start} is not less than batch_size={full}")
        if (full - ramp.start) % ramp.increment:
            raise ValueError(
                f"batch_ramp: increments of {ramp.increment} do not lead from start={ramp.start} "
                f"to batch_size={full}; use a divisor of {full - ramp.start}"
            )
        return self

    @model_validator(mode="after")
    def _updated_early(self) -> TrainConfig:
        if not self.optimizer_in_backward:
            return self
        for name, excluded, remedy in (
            ("clip", self.clip is not None, "clip=null"),
            ("spike", self.spike is not None, "spike=null"),
            ("precision", self.precision == "fp16", "precision=bf16 or fp32"),
            ("micro_batch_size", self.at_once < self.batch_size, "micro_batch_size=null"),
        ):
            if excluded:
                raise ValueError(
                    f"optimizer_in_backward: {name} needs all gradients of a step together, and "
                    f"each is dropped when its parameter is updated; use {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _recomputed(self) -> TrainConfig:
        if isinstance(self.activation_checkpointing, float) and not self.compile:
            raise ValueError(
                "activation_checkpointing: the compiler chooses a share of activations; add "
                "compile=true, or use selective or full"
            )
        return self

    @model_validator(mode="after")
    def _trained(self) -> TrainConfig:
        for name, given in (("qat", self.qat), ("adapter", self.adapter)):
            if self.precision == "fp8" and given is not None:
                raise ValueError(
                    f"precision: fp8 trains plain layers, not those of {name}; use bf16"
                )
        if self.qat is not None and self.adapter is not None:
            raise ValueError(
                "qat: the weights under an adapter are not trained; use one of the two"
            )
        return self

    @model_validator(mode="after")
    def _sampled(self) -> TrainConfig:
        reads, kind, sampler = self.objective.reads, self.objective.kind, self.rollouts.sampler
        for name, given in (("rollout", self.rollout), ("reward", self.reward)):
            if given is not None and reads != "rollouts":
                raise ValueError(f"{name}: {kind} learns from {reads}, not from rollouts")
        if reads == "rollouts":
            comparing = [(one.kind, one.least_group) for one in self.rewards]
            for name, least in (*comparing, (kind, self.objective.least_group)):
                if self.rollouts.group < least:
                    raise ValueError(
                        f"rollout.group: {name} compares at least {least} completions of a prompt"
                    )
            if self.rollouts.resample and self.rollouts.group < 2:
                raise ValueError(
                    "rollout.resample: the rewards of one completion are always equal, so every "
                    "group would be replaced; use rollout.group=2 or more"
                )
            if not sampler.follows and not self.objective.off_policy:
                raise ValueError(
                    f"rollout.sampler: the server keeps its weights, so that {kind} would learn "
                    "from answers of an older policy; give weights and reload, or use grpo with "
                    "train.objective.correction=token"
                )
        return self

    @model_validator(mode="after")
    def _rewinds(self) -> TrainConfig:
        if self.spike is not None and self.spike.rewinds and self.objective.reads == "rollouts":
            raise ValueError(
                f"spike.rewinds: {self.objective.kind} learns from rollouts, whose data cannot be "
                "left out; use spike={rewinds: 0}"
            )
        return self

    @model_validator(mode="after")
    def _passes(self) -> TrainConfig:
        names = [one.label or one.kind for one in self.rewards]
        curriculum = self.rollout and self.rollout.curriculum
        if curriculum and curriculum.reward not in names:
            raise ValueError(
                f"rollout.curriculum.reward: there is no reward {curriculum.reward!r}; it is one "
                f"of {', '.join(names)}"
            )
        return self

    @property
    def batch_sizes(self) -> BatchSizes:
        """Sequences of each step."""
        return BatchSizes(self.batch_size, self.batch_ramp)

    @property
    def full_steps(self) -> float:
        """Steps of the full batch size that read as much as all steps of the run."""
        return self.batch_sizes.before(self.steps) / self.batch_size

    @property
    def rates(self) -> RateSchedule:
        """How the learning rate moves over the steps."""
        schedule: RateSchedule = self.schedule
        return schedule if self.batch_ramp is None else ByRows(schedule, self.batch_sizes)

    @property
    def rollouts(self) -> RolloutConfig:
        """How the model answers, where the objective reads rollouts."""
        rollout = self.rollout or RolloutConfig()
        if rollout.resample is None:
            return rollout.model_copy(update={"resample": self.objective.resamples})
        return rollout

    @property
    def rewards(self) -> Sequence[RewardConfig]:
        """What an answer earns, where the objective reads rollouts."""
        return self.reward or (TaskScore(),)

    @property
    def updates(self) -> int:
        """Steps that learn from the same rollout; 1 where nothing is sampled."""
        return self.rollouts.updates if self.objective.reads == "rollouts" else 1

    @property
    def at_once(self) -> int:
        """Sequences of a micro-batch."""
        return self.micro_batch_size or self.batch_size
