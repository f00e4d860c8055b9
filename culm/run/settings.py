"""The settings of a run: what a run file says, composed and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from culm.adapt.upcycle import Upcycle
from culm.config import Config, SettingError, compose_run, parse
from culm.data.settings import DataConfig
from culm.eval.settings import EvalConfig
from culm.model.config import TransformerConfig
from culm.parallel.parallelize import ParallelConfig
from culm.run.dial import apply_depth
from culm.run.start import Start
from culm.tokenizer import TokenizerConfig
from culm.train.settings import TrainConfig


class RunConfig(Config):
    """One run.

    folder: where everything of it goes; started again with the same one, the run goes on.
    seed: of weights, order and draws. device: "auto", "cpu", "cuda".
    start: a folder or file with the model and tokenizer that it begins from, or `hf`: a folder or
        hub id of Hugging Face (`culm.run.start.Pretrained`); without it, `model`
        is built new and `tokenizer` is trained on the data, with the model's vocabulary if not
        given. `model: {depth: 12}` is one dial for all of it (`culm.run.dial`).
    upcycle: turn dense feed-forwards of the model that it begins from into experts.
    """

    folder: str = Field(default="runs/run", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    start: Start | None = None
    upcycle: Upcycle | None = None
    tokenizer: TokenizerConfig | None = None
    model: TransformerConfig | None = None
    data: DataConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _upcycled(self) -> RunConfig:
        if self.upcycle is not None and self.start is None:
            raise ValueError("upcycle: there is no dense model to copy from; give start")
        return self

    @model_validator(mode="after")
    def _apart(self) -> RunConfig:
        if Path(self.folder).resolve() in {Path(path).resolve() for path in self.data.path}:
            raise ValueError(f"folder: {self.folder} holds the text; give the run one of its own")
        return self

    @model_validator(mode="after")
    def _learnable(self) -> RunConfig:
        objective, data = self.train.objective, self.data
        if objective.on_policy and not data.tasks:
            raise ValueError("data.tasks: an on-policy objective needs tasks to answer")
        if not objective.on_policy and data.prepared is None:
            format = "chat" if data.tasks else data.format.kind
            paired = not data.tasks and data.format.group == 2
            if paired != objective.pairs:
                wanted = "pairs, as data.format=pair gives" if objective.pairs else "single records"
                raise ValueError(
                    f"train.objective: {objective.kind} learns from {wanted}, not from {format}"
                )
        if self.model is not None and self.model.mtp and objective.kind != "next_token":
            raise ValueError(f"model.mtp: {objective.kind} does not train it; next_token does")
        return self


def read_run(name: str | None, settings: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """A run file with `name=value` settings, and where each of its values came from."""
    composed = apply_depth(compose_run(name, settings))
    start = composed.values.get("start")
    if isinstance(start, dict) and "kind" in start:  # a path below, which was taken for a kind
        below = start.pop("kind")
        start |= {} if start.keys() & {"hf", "path"} else {"path": below}
    if (composed.values.get("model") is None) == (composed.values.get("start") is None):
        raise SettingError(
            "model: give the settings of a new model, or start: a folder to go on from, not both; "
            "model=null takes those of a recipe away"
        )
    return parse(RunConfig, composed.values), composed.origins
