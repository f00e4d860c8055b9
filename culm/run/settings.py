"""The settings of a run: what a run file says, composed and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from culm.adapt.extend import Extend
from culm.adapt.upcycle import Upcycle
from culm.batch import Reads
from culm.compose import Layout, compose_run
from culm.config import MAY_CHANGE, Config, SettingError, alternatives, kind_unless_given, parse
from culm.convert.models import Model
from culm.data.settings import DataConfig
from culm.eval.settings import EvalConfig
from culm.objective import Objective
from culm.objective.objective import ObjectiveConfig
from culm.parallel.settings import ParallelConfig
from culm.run.autoencoder import start_from_autoencoder
from culm.run.dial import apply_depth
from culm.run.start import Start
from culm.run.train_settings import TrainConfig
from culm.task.file_task import FileTask
from culm.task.task import Task
from culm.tokenizer import TRAINED, TokenizerConfig
from culm.tokenizer.train import BPE

LAYOUT = Layout(
    sections=("model", "data", "train", "parallel", "eval"),
    words={"start": ("path", "hf")},
    # A stream of tasks holds out nothing; a file that replaces it does.
    alternatives={
        "data": {"path": (), "prepared": (), "tasks": ("questions", "turns", "held_out")}
    },
)


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
    upcycle: turn dense feed-forwards of the start into experts. extend: give the start a longer
        context.
    deterministic: take deterministic kernels only, so that the run is the same bit for bit when it
        is repeated on the same machine; on a CPU it is anyway.
    """

    folder: Annotated[str, MAY_CHANGE] = Field(default="runs/run", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Annotated[str, MAY_CHANGE] = "auto"
    start: Start | None = None
    upcycle: Upcycle | None = None
    extend: Extend | None = None
    tokenizer: Annotated[TokenizerConfig | None, kind_unless_given("bpe")] = None
    model: Model | None = None
    data: DataConfig
    train: TrainConfig
    parallel: Annotated[ParallelConfig, MAY_CHANGE] = ParallelConfig()
    eval: Annotated[EvalConfig, MAY_CHANGE] = EvalConfig()
    deterministic: Annotated[bool, MAY_CHANGE] = False

    @model_validator(mode="before")
    @classmethod
    def _vocabulary(cls, values: Any) -> Any:
        """With the model's vocabulary for a tokenizer that is trained for it, less the tokens that
        are the objective's own, unless given.
        """
        given = values if isinstance(values, dict) else {}
        tokenizer, model = given.get("tokenizer"), given.get("model")
        named = {"kind": tokenizer} if isinstance(tokenizer, str) else tokenizer
        if not isinstance(named, dict) or not isinstance(model, dict) or not named:
            return values
        trained = named.get("kind", "bpe") in TRAINED and "path" not in named
        if not trained or "vocabulary" not in model:
            return values
        rows = model["vocabulary"]
        if isinstance(rows, int):
            rows -= _own_tokens(given)
        return {**given, "tokenizer": {"vocabulary": rows, **named}}

    @property
    def new_tokenizer(self) -> TokenizerConfig:
        """Of a new model."""
        assert self.model is not None
        own = self.train.objective.own_tokens
        return self.tokenizer or BPE(vocabulary=self.model.vocabulary - own)

    @model_validator(mode="after")
    def _changes_a_start(self) -> RunConfig:
        if self.upcycle is not None and self.start is None:
            raise ValueError("upcycle: there is no dense model to copy from; give start")
        if self.extend is not None and self.start is None:
            raise ValueError("extend: a new model has the context of model.context; give start")
        if self.tokenizer is not None and self.start is not None:
            raise ValueError(
                "tokenizer: a run that has a start uses its tokenizer; leave this out, or give "
                "tokenizer=null where a recipe sets it"
            )
        return self

    @model_validator(mode="after")
    def _piped(self) -> RunConfig:
        train, parallel = self.train, self.parallel
        if parallel.pipeline == 1:
            return self
        if parallel.pipeline_schedule == "zero_bubble" and (
            train.activation_checkpointing == "selective"
        ):
            raise ValueError(
                "train.activation_checkpointing: selective keeps results for one backward, and "
                "zero_bubble makes two; use full or none, or "
                "parallel.pipeline_schedule=interleaved"
            )
        if train.checkpoint.form == "whole":
            raise ValueError(
                "train.checkpoint.form: ranks of a pipeline hold different weights, which are not "
                "gathered; use sharded or auto"
            )
        if train.clip_by == "group":
            raise ValueError(
                "train.clip_by: ranks of a pipeline have other groups of parameters; use model, or "
                "parallel.data=fsdp"
            )
        if train.weights == "bf16":
            raise ValueError(
                "train.weights: bf16 rounds at random, and two ranks of a pipeline have the "
                "embedding; use fp32, or parallel.data=fsdp"
            )
        return self

    @model_validator(mode="after")
    def _separate(self) -> RunConfig:
        if Path(self.folder).resolve() in {Path(path).resolve() for path in self.data.path}:
            raise ValueError(f"folder: {self.folder} holds the text; use another folder")
        return self

    @model_validator(mode="after")
    def _streamed(self) -> RunConfig:
        if self.data.stream is None or self.start is not None:
            return self
        given = None if self.tokenizer is None else dict(self.tokenizer)
        if given is None or (given["kind"] in TRAINED and given.get("path") is None):
            raise ValueError(
                "tokenizer: a stream is not read to train one; train it with culm tokenize train "
                "on a part of the text, and give tokenizer={kind: saved, path: FOLDER}"
            )
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
        if data.mix and objective.reads != "documents":
            raise ValueError(
                f"data.mix: {objective.kind} learns from {objective.reads}; only documents and "
                "dialogues are mixed, and data.path takes a list of files"
            )
        own = (Path(self.folder) / "data").resolve()
        if own in {one.corpus.resolve() for one in data.mix if one.corpus is not None}:
            raise ValueError(
                f"data.mix: {own} is the run's own; name it without a corpus, or give the run "
                "another folder"
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


def _own_tokens(values: dict[str, Any]) -> int:
    """Of the objective, in the settings of a run as they are given."""
    train = values.get("train")
    given = train.get("objective") if isinstance(train, dict) else None
    kind = given.get("kind") if isinstance(given, dict) else given
    for one in alternatives(Objective):
        if issubclass(one, ObjectiveConfig) and one.model_fields["kind"].default == kind:
            return one.own_tokens
    return 0  # another kind is refused later


def _learner_of(gives: Reads) -> str:
    """The objectives that learn from what a format gives."""
    kinds = [
        learners[gives]
        for kind in alternatives(Objective)
        if issubclass(kind, ObjectiveConfig) and gives in (learners := kind.learners())
    ]
    *others, last = kinds
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{names} {'learn' if others else 'learns'} from {gives}"


def read_run(name: str | None, settings: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """A run file with `name=value` settings, and the origin of each of its values."""
    composed = compose_run(name, settings, LAYOUT)
    if (kind := composed.values.get("kind")) is not None:
        raise SettingError(
            f"kind: {kind} is no run of a language model; culm train, plan, inspect and eval read "
            "runs of a graph"
        )
    composed = start_from_autoencoder(apply_depth(composed))
    if (composed.values.get("model") is None) == (composed.values.get("start") is None):
        raise SettingError(
            "model: give the settings of a new model, or start: a folder to start from, not both; "
            "model=null removes those of a recipe"
        )
    return parse(RunConfig, composed.values), composed.origins
