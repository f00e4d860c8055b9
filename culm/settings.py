"""The settings of a run: what a run file says, composed and checked."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import NonNegativeInt

from culm.config import Config, SettingError, compose_run, parse
from culm.data.settings import DataConfig
from culm.dist.parallelize import Dist
from culm.eval.settings import EvalConfig
from culm.model.transformer import TransformerConfig
from culm.tokenizer import TokenizerConfig
from culm.train.settings import TrainConfig


class RunConfig(Config):
    """One run. start: a folder or file with the model and tokenizer that it begins from; without
    it, `model` is built new and `tokenizer` is trained on the data (its vocabulary is the model's
    if not given).
    """

    folder: str = "runs/run"
    seed: NonNegativeInt = 0
    device: str = "auto"
    start: str | None = None
    tokenizer: TokenizerConfig | None = None
    model: TransformerConfig | None = None
    data: DataConfig
    train: TrainConfig
    dist: Dist = Dist()
    eval: EvalConfig = EvalConfig()


def read_run(name: str | None, settings: Sequence[str] = ()) -> tuple[RunConfig, dict[str, str]]:
    """A run file with `name=value` settings, and where each of its values came from."""
    composed = compose_run(name, settings)
    config = parse(RunConfig, composed.values)
    if (config.model is None) == (config.start is None):
        raise SettingError(
            "model: give the settings of a new model, or start: a folder to go on from"
        )
    return config, composed.origins
