"""What a model costs: against counts by hand and against a real pass."""

import pytest
import torch
from patch_models import config_of_file
from torch.utils.flop_counter import FlopCounterMode

from culm.compose import CONFIGS
from culm.model import logprobs
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig
from culm.plan.model import cost_of, idle_parameters

E, H, K, D, M, V, L = 32, 4, 2, 8, 48, 100, 3


def settings(tied: bool = True) -> TransformerConfig:
    return TransformerConfig(
        vocabulary=V,
        width=E,
        layers=L,
        attention=(GQA(heads=H, kv_heads=K, qk_norm="head"),),
        mlp=(SwiGLU(hidden=M),),
        tied=tied,
    )


LAYER_MATRICES = E * H * D + 2 * E * K * D + H * D * E + 3 * E * M
LAYER_NORMS = 2 * E + 2 * D


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_by_hand(tied):
    cost = cost_of(settings(tied), context=32)
    body = L * (LAYER_MATRICES + LAYER_NORMS) + E
    assert cost.parameters == body + V * E * (1 if tied else 2)
    assert cost.embedding == V * E
    assert cost.active == body + V * E
    assert cost.cache_bytes == L * 2 * K * D * 2  # keys and values in bf16


@pytest.mark.parametrize(("context", "seen"), [(32, 1.0), (40, 1.0), (256, 0.625)])
def test_flops_by_hand(context, seen, monkeypatch):
    """`seen`: the share of the score matrix that is computed, in 1 block or in 4."""
    cost = cost_of(settings(), context)
    attention = L * 2 * (2 * H * D * seen * context)
    layers, head = 2 * L * LAYER_MATRICES + attention, 2 * V * E
    assert cost.forward_flops == layers + head
    assert cost.training_flops == 3 * (layers + head)
    monkeypatch.setattr(logprobs, "STORED_BYTES", 0)  # what is computed again is not counted
    assert cost_of(settings(), context).training_flops == 3 * (layers + head)


def test_the_meta_device_counts_as_a_real_pass_does():
    model = settings().build(seed=0)
    model.set_backend("blocks")
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(0, V, (1, 64)))
    assert counter.get_total_flops() / 64 == cost_of(settings(), 64).forward_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [48, 21])
def test_experts_count_where_a_token_goes(dtype, hidden):
    """Every other layer has experts; the loop and the kernel cost the same."""
    moe = MoE(experts=8, top_k=2, hidden=hidden, shared=1, balance_loss=0.1)
    dense, cost = settings(), settings().model_copy(update={"mlp": (SwiGLU(hidden=M), moe)})
    found, base = cost_of(cost, 32, dtype), cost_of(dense, 32, dtype)
    expert, lost = 3 * E * hidden, 3 * E * M
    assert found.parameters == base.parameters - lost + 9 * expert + 8 * E
    assert found.active == base.active - lost + 3 * expert + 8 * E
    assert found.active == found.parameters - idle_parameters(cost.build(device="meta"))
    more = 2 * (3 * expert - lost + 8 * E)
    assert found.forward_flops == base.forward_flops + more
    assert found.training_flops == base.training_flops + 3 * more


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_every_size_is_what_its_name_says(name):
    config = config_of_file(name)
    parameters = sum(p.numel() for p in config.build(device="meta").parameters())
    units = {"m": 1e6, "b": 1e9}
    if name[-1] in units and name[:-1].isdigit():
        assert parameters == pytest.approx(float(name[:-1]) * units[name[-1]], rel=0.2)
    assert parameters < 40e9
