"""The objective of a run, built around a model."""

from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
import torch
from patch_models import TEXT, patch_model, tokens_of
from torch import nn

from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA, adapters_of
from culm.batch import Batch, Loss, Reads, Term
from culm.config import SettingError
from culm.data.settings import DataConfig
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.preference import Preference
from culm.objective.reward import Reward
from culm.run import objective
from culm.run.objective import ModelLoader, build_objective, change_model
from culm.run.settings import RunConfig
from culm.run.train_settings import TrainConfig

SMALL = TransformerConfig(vocabulary=32, width=16, layers=1, attention=(GQA(heads=2),))


class WithHead(ObjectiveConfig):
    reads: ClassVar[Reads] = "documents"
    kind: Literal["with_head"] = "with_head"

    def build(self, model: Transformer, load: Load, seed: int) -> Objective:
        return WithHeadObjective(model)


class WithHeadObjective(Objective):
    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.outside = nn.Linear(16, 1)

    def loss(self, batch: Batch, context: Context) -> Loss:
        values = self.outside(self.model.hidden(batch.tokens, context))
        return Loss({"values": Term(values.sum(), "tokens")})


def test_what_an_objective_owns_besides_models_is_placed() -> None:
    train = TrainConfig(steps=1, precision="fp32").model_copy(update={"objective": WithHead()})
    config = RunConfig(data=DataConfig(path=["text"]), model=SMALL, train=TrainConfig(steps=1))
    config = config.model_copy(update={"train": train})
    device = torch.device("meta")
    model = SMALL.build(0)
    model.to(device).tie()
    objective = build_objective(config, model, device, ModelLoader(config, device))
    assert {p.device.type for p in objective.parameters()} == {"meta"}
    assert objective.model.head.weight is objective.model.embed.weight


def test_what_learns_becomes_bf16_and_a_frozen_part_in_fp32_stays() -> None:
    """The model that divides a text would divide it otherwise with rounded weights."""
    train = TrainConfig(steps=1, weights="bf16")
    model, device = patch_model("blt"), torch.device("cpu")
    config = RunConfig(data=DataConfig(path=["text"]), model=SMALL, train=train)
    before = model.ends(tokens_of(TEXT))
    found = build_objective(config, model, device, ModelLoader(config, device)).model
    for name, parameter in found.named_parameters():
        frozen = name.startswith("bridge.patcher")
        assert parameter.dtype == (torch.float32 if frozen else torch.bfloat16), name
    assert torch.equal(model.ends(tokens_of(TEXT)), before)


def test_a_reference_in_bf16_has_the_weights_of_the_policy() -> None:
    """Norms too, which learn in bf16: else margins and KL would begin away from zero."""
    train = TrainConfig(steps=1, objective=Preference(), weights="bf16")
    config = RunConfig(data=DataConfig(path=["text"], format="pair"), model=SMALL, train=train)
    device, model = torch.device("cpu"), SMALL.build(0)
    nn.init.normal_(model.norm.weight, 1, 0.3)
    found = build_objective(config, model, device, ModelLoader(config, device)).models()
    policy, reference = (dict(one.named_parameters()) for one in found.values())
    for name, weight in policy.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, reference[name])


def test_a_further_model_with_another_tokenizer_is_refused(monkeypatch) -> None:
    config = RunConfig(data=DataConfig(path=["text"]), model=SMALL, train=TrainConfig(steps=1))
    monkeypatch.setattr(
        objective, "load_model", lambda path: (SMALL.build(), SimpleNamespace(fingerprint="a"))
    )
    monkeypatch.setattr(objective, "digest_of", lambda path: f"digest of {path}")
    cpu = torch.device("cpu")
    same, other = SimpleNamespace(fingerprint="a"), SimpleNamespace(fingerprint="b")
    load = ModelLoader(config, cpu, same)  # type: ignore[arg-type]
    assert load("critic", "judge").config == SMALL
    assert load.digests == {"critic=judge": "digest of judge"}
    with pytest.raises(SettingError, match="the tokenizer of judge differs"):
        ModelLoader(config, cpu, other)("critic", "judge")  # type: ignore[arg-type]


@pytest.mark.parametrize("scalar", [False, True])
def test_a_scalar_head_is_trained_under_an_adapter(scalar: bool) -> None:
    train = TrainConfig(steps=1, objective=Reward(), adapter=LoRA(rank=2))
    config = RunConfig(data=DataConfig(path=["text"], format="pair"), model=SMALL, train=train)
    model = SMALL.build(0)
    if scalar:  # a reward model that is trained further
        with_scalar_head(model, 0)
    change_model(config, model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if not name.endswith((".a", ".b"))} == {"head.weight"}
    assert adapters_of(model)
