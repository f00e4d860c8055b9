"""The `train` section of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from culm.adapt.lora import LoRA
from culm.adapt.quantize.qat import QAT
from culm.config import Config, one_of
from culm.model.attend import Backend
from culm.objective import Objective
from culm.objective.next_token import NextToken
from culm.optim import Optimizer, Schedule
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine


class Checkpoint(Config):
    """Saved each `every_steps` and at the end; the newest `keep` stay."""

    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2


class TrainConfig(Config):
    """steps: optimizer steps. rows: of a step, over all ranks and micro-batches.

    micro_rows: rows that are computed at once; fewer need less memory and give the same result.
    context: tokens of a row, the model's if not given. clip: greatest gradient norm.
    precision: of activations; weights and optimizer state stay in fp32. auto takes bf16 where
    this machine multiplies it faster. attention: how it is computed (`culm.model.attend`); auto
    takes what passes a trial on this machine. compile: torch.compile each block. recompute: keep
    only the input of each block for the backward. adapter: train this beside frozen weights. qat:
    round weights in every forward as `culm quantize --to` would, so that they learn to bear it;
    the model that is written at the end is quantised.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    context: PositiveInt | None = None
    objective: Objective = NextToken()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    adapter: one_of(LoRA) | None = None  # type: ignore[valid-type]
    qat: QAT | None = None
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention_backend: Backend | Literal["auto"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _trained(self) -> TrainConfig:
        if self.qat is not None and self.adapter is not None:
            raise ValueError("qat: the weights below an adapter do not learn; take one of the two")
        return self
