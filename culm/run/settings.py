"""The settings of a run: what a run file says, composed and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from culm.adapt.lora import LoRA
from culm.adapt.quantize.qat import QAT
from culm.adapt.upcycle import Upcycle
from culm.batch import Reads
from culm.compose import Layout, compose_run
from culm.config import Config, SettingError, alternatives, kind_unless_given, one_of, parse
from culm.data.settings import DataConfig
from culm.eval.settings import EvalConfig
from culm.model.attend import Backend
from culm.model.transformer import TransformerConfig
from culm.objective import Objective
from culm.objective.next_token import NextToken
from culm.objective.objective import ObjectiveConfig
from culm.optim import Optimizer, Schedule
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine
from culm.parallel.parallelize import ParallelConfig
from culm.rollout.reward import Rewards
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.reward.score import TaskScore
from culm.rollout.settings import RolloutConfig
from culm.run.dial import apply_depth
from culm.run.start import Start
from culm.task.file_task import FileTask
from culm.task.task import Task
from culm.tokenizer import TokenizerConfig
from culm.train.run_folder import MAY_CHANGE, MayChange
from culm.train.trackers import Trackers

LAYOUT = Layout(
    sections=("model", "data", "train", "parallel", "eval"),
    words={"start": ("path", "hf")},
    # A stream of tasks holds out nothing; a file that replaces it does.
    alternatives={
        "data": {"path": (), "prepared": (), "tasks": ("questions", "turns", "held_out")}
    },
)

# Which server samples, and where it is: a run may go on with another one.
SAMPLER_MAY_CHANGE = MayChange(but=("", *(RolloutConfig.model_fields.keys() - {"sampler"})))


class CheckpointConfig(Config):
    """every_steps: optimizer steps between two checkpoints; one is saved at the end in any case.
    keep: how many of the newest stay.
    """

    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2


class TrainConfig(Config):
    """steps: optimizer steps. batch_size: sequences of a step, over all ranks and micro-batches; a
    pair counts as one.

    micro_batch_size: sequences that are computed at once; fewer need less memory and give the same
        result.
    objective: what is learned, and so the loss. optimizer: the rule that updates the weights.
    schedule: how the learning rate moves over the steps. checkpoint: how often the state is saved.
    context: tokens of a sequence; the model's, unless given. clip: maximum gradient norm.
    precision: of activations; weights and optimizer states stay in fp32. auto takes bf16 where it
        is the faster matmul precision of this machine.
    attention_backend: how attention is computed (`culm.model.attend`); auto takes one that passes a
        trial on this machine.
    compile: torch.compile each block. activation_checkpointing: keep only the input of each block
        for the backward.
    adapter: train this on top of frozen weights. qat: quantise weights in every forward as `culm
        quantize --to` would, so that the model adapts to it; the final model is quantised.
    rollout: how the model answers, for objectives that read rollouts. reward: what an answer earns;
        several are added. The score of its task, unless given.
    """

    steps: Annotated[PositiveInt, MAY_CHANGE]
    batch_size: PositiveInt = 32
    micro_batch_size: Annotated[PositiveInt | None, MAY_CHANGE] = None
    context: PositiveInt | None = None
    objective: Objective = NextToken()
    rollout: Annotated[RolloutConfig | None, SAMPLER_MAY_CHANGE] = None
    reward: Rewards | None = None
    optimizer: Annotated[Optimizer, MayChange(but=("kind",))] = AdamW()
    schedule: Annotated[Schedule, MAY_CHANGE] = Cosine()
    adapter: one_of(LoRA) | None = None  # type: ignore[valid-type]
    qat: QAT | None = None
    clip: Annotated[PositiveFloat, MAY_CHANGE] = 1.0
    precision: Annotated[Literal["auto", "fp32", "bf16"], MAY_CHANGE] = "auto"
    attention_backend: Annotated[Backend | Literal["auto"], MAY_CHANGE] = "auto"
    compile: Annotated[bool, MAY_CHANGE] = False
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE] = CheckpointConfig()

    @model_validator(mode="after")
    def _trained(self) -> TrainConfig:
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


class RunConfig(Config):
    """One run.

    folder: where everything goes; started again with the same folder, the run resumes.
    seed: of weights, order and sampling. device: "auto", "cpu", "cuda".
    start: a folder or file with the model and tokenizer that the run starts from, or `hf`: a folder
        or hub id of Hugging Face (`culm.run.start.Pretrained`); without it `model` is built and
        `tokenizer` is trained on the data, with the model's vocabulary size unless given.
        `model: {depth: 12}` is one dial for all of it (`culm.run.dial`).
    tokenizer: of a new model; byte-level BPE unless given. model: a new model to build.
    data: what is learned from. train: how it is learned. parallel: how several processes share it.
    eval: what is measured.
    upcycle: turn dense feed-forwards of the start into experts.
    track: where metrics are reported to, besides the files in the folder.
    """

    folder: Annotated[str, MAY_CHANGE] = Field(default="runs/run", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Annotated[str, MAY_CHANGE] = "auto"
    start: Start | None = None
    upcycle: Upcycle | None = None
    tokenizer: Annotated[TokenizerConfig | None, kind_unless_given("bpe")] = None
    model: TransformerConfig | None = None
    data: DataConfig
    train: TrainConfig
    parallel: Annotated[ParallelConfig, MAY_CHANGE] = ParallelConfig()
    eval: Annotated[EvalConfig, MAY_CHANGE] = EvalConfig()
    track: Annotated[Trackers, MAY_CHANGE] = ()

    @model_validator(mode="before")
    @classmethod
    def _vocabulary(cls, values: Any) -> Any:
        """With the model's vocabulary for a tokenizer that is trained for it, unless given."""
        given = values if isinstance(values, dict) else {}
        tokenizer, model = given.get("tokenizer"), given.get("model")
        if not isinstance(tokenizer, dict) or not isinstance(model, dict) or not tokenizer:
            return values
        if tokenizer.get("kind", "bpe") != "bpe" or "vocabulary" not in model:
            return values
        return {**given, "tokenizer": {"vocabulary": model["vocabulary"], **tokenizer}}

    @model_validator(mode="after")
    def _upcycled(self) -> RunConfig:
        if self.upcycle is not None and self.start is None:
            raise ValueError("upcycle: there is no dense model to copy from; give start")
        return self

    @model_validator(mode="after")
    def _separate(self) -> RunConfig:
        if Path(self.folder).resolve() in {Path(path).resolve() for path in self.data.path}:
            raise ValueError(f"folder: {self.folder} holds the text; use another folder")
        return self

    @model_validator(mode="after")
    def _learnable(self) -> RunConfig:
        objective, data = self.train.objective, self.data
        if objective.reads == "rollouts" and not data.tasks:
            raise ValueError(f"data.tasks: {objective.kind} learns from rollouts, and needs tasks")
        if objective.reads == "documents" and data.tasks and data.format.kind != "chat":
            raise ValueError("data.format: tasks give dialogues; add data.format=chat")
        if objective.reads != "rollouts" and data.gives not in (None, objective.reads):
            raise ValueError(
                f"train.objective: {objective.kind} learns from {objective.reads}, and "
                f"data.format={data.format.kind} gives {data.gives}; {_learner_of(data.gives)}"
            )
        objective.check_columns(data.format.columns)
        own = data.prepared or Path(self.folder) / "data"
        if data.replay is not None and data.replay.corpus.resolve() == own.resolve():
            raise ValueError(
                "data.replay.corpus: it is the corpus itself; give that of a stage before"
            )
        if data.replay is not None and objective.reads != "documents":
            raise ValueError(
                f"data.replay: {objective.kind} learns from {objective.reads}; text goes with "
                "documents and dialogues alone"
            )
        if data.replay is not None and data.replay.after >= self.train.steps:
            raise ValueError(
                f"data.replay.after: {data.replay.after} leaves no step of train.steps="
                f"{self.train.steps} with text"
            )
        if data.replay is not None and data.replay.after and data.curriculum is not None:
            raise ValueError(
                "data.replay.after: a curriculum counts steps of equal size; leave one of them out"
            )
        self._check_curriculum()
        if self.model is not None and self.model.mtp and not objective.trains_mtp:
            raise ValueError(f"model.mtp: {objective.kind} does not train it; next_token does")
        return self

    def _check_curriculum(self) -> None:
        curriculum, objective = self.data.curriculum, self.train.objective
        tasks: tuple[Task, ...] = self.data.tasks
        if objective.reads == "rollouts" and self.train.rollouts.curriculum is not None:
            for task in tasks:
                if not isinstance(task, FileTask):
                    raise ValueError(
                        f"train.rollout.curriculum: {task.name} makes up its questions, so that "
                        "hardly any has a pass rate; use a file, as in data.tasks={kind: prompts, "
                        "path: FILE}"
                    )
        if curriculum is None:
            return
        if objective.reads == "rollouts":
            raise ValueError(
                f"data.curriculum: {objective.kind} asks questions without end, which cannot be "
                "sorted; train.rollout.curriculum keeps those that are neither too easy nor too "
                "hard"
            )
        if curriculum.steps > self.train.steps:
            raise ValueError(
                f"data.curriculum.steps: {curriculum.steps} steps are more than "
                f"train.steps={self.train.steps}, so the run would end before it reads all rows"
            )


def _learner_of(gives: Reads) -> str:
    """The objectives that learn from what a format gives."""
    kinds = [
        learners[gives]
        for kind in alternatives(Objective)
        if issubclass(kind, ObjectiveConfig) and gives in (learners := kind.learners())
    ]
    return f"{' and '.join(kinds)} {'learn' if kinds[1:] else 'learns'} from {gives}"


def read_run(name: str | None, settings: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """A run file with `name=value` settings, and the origin of each of its values."""
    composed = apply_depth(compose_run(name, settings, LAYOUT))
    if (composed.values.get("model") is None) == (composed.values.get("start") is None):
        raise SettingError(
            "model: give the settings of a new model, or start: a folder to start from, not both; "
            "model=null removes those of a recipe"
        )
    return parse(RunConfig, composed.values), composed.origins
