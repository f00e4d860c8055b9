"""Optimizers as groups x rule: torch's own numbers, declared states, and their layouts."""

import copy
from collections.abc import Mapping

import pytest
import torch
from learning import build
from test_optimizers import gradients, model  # noqa: F401 - a fixture
from torch import Tensor, nn

from culm.config import SettingError
from culm.model.attention.gqa import GQA
from culm.model.scaling import MuP
from culm.model.trunk import TrunkConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon
from culm.optim.rule import Group, Layout, Rule, RuleOptimizer, check_layouts
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.store import CheckpointStore
from culm.train.checkpoint.tensors import CheckpointError


class Sign(Rule):
    """Steps by the sign of the gradient, with one number of each rank's own."""

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"seen": "local"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"seen": torch.zeros(3)}

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        state["seen"] += 1
        parameter.add_(gradient.sign(), alpha=-group["lr"])


def test_adamw_is_that_of_torch_bit_for_bit(model) -> None:  # noqa: F811
    other = copy.deepcopy(model)
    ours = AdamW(rate=0.01, weight_decay=0.1).build(model)
    matrices = [p for p in other.parameters() if p.ndim >= 2]
    vectors = [p for p in other.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0},
    ]  # fmt: skip
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(4):
        for part, optimizer in ((model, ours), (other, theirs)):
            gradients(part, step)
            optimizer.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", [AdamW(), Muon()])
def test_every_state_has_a_declared_layout(model, config) -> None:  # noqa: F811
    optimizer = config.build(model)
    gradients(model, 0)
    optimizer.step()
    layouts = optimizer.layouts()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state.keys() == layouts[parameter].keys()
        for name, value in state.items():
            same = value.shape == parameter.shape
            assert same == (layouts[parameter][name] == "parameter"), name


def test_a_state_of_any_shape_is_stored_and_restored(model, tmp_path) -> None:  # noqa: F811
    """Even one of the shape of its parameter that is not laid out like it."""
    objective = build(NextToken(), model)
    group = {"params": list(model.parameters()), "lr": 0.1, "rule": Sign()}
    optimizer = RuleOptimizer([group])
    gradients(model, 0)
    optimizer.step()
    store = CheckpointStore(tmp_path, objective, optimizer)
    store.save(Progress(1, 0, "x"), {"rows": torch.arange(3)}, lambda path: None)
    store.wait()
    fresh = RuleOptimizer([{**group, "params": list(model.parameters())}])
    found = CheckpointStore(tmp_path, objective, fresh).load()
    assert found is not None
    assert found[0] == Progress(1, 0, "x")
    assert found[1]["rows"].tolist() == [0, 1, 2]
    for parameter in model.parameters():
        assert fresh.state[parameter]["seen"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match="the optimizer has no state 'seen'"):
        CheckpointStore(tmp_path, objective, AdamW().build(model)).load()


def test_a_local_state_of_a_sharded_model_is_refused(model) -> None:  # noqa: F811
    optimizer = RuleOptimizer([{"params": list(model.parameters()), "lr": 0.1, "rule": Sign()}])
    check_layouts(optimizer, sharded=False)
    with pytest.raises(SettingError, match="Sign stores a state of each rank's own"):
        check_layouts(optimizer, sharded=True)
    check_layouts(AdamW().build(model), sharded=True)


def test_a_trunk_with_other_ends_follows_its_scaling_rule() -> None:
    rule = MuP(base_width=8, base_head_dim=8)
    config = TrunkConfig(width=16, layers=1, attention=(GQA(heads=2),), scaling=rule)
    groups = Muon(rate=0.01).build(config.build()).param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["orthogonal"] == pytest.approx(0.01 * 2**-0.5)
