"""Scaling rules: the coordinate check over width and depth, with the control; golden multiples."""

import math

import pytest
import torch
from torch import Tensor

from culm.adapt.lora import LoRA
from culm.config import SettingError, parse
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.init import Llama, Zero
from culm.model.mlp.moe import MoE
from culm.model.scaling import CompleteP, Multiples, MuP
from culm.model.transformer import Transformer, TransformerConfig
from culm.optim import Optimizer
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon

STEPS = 8
TOKENS = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(5))


def built(width: int, layers: int, scaling, seed: int = 0, **more) -> Transformer:
    """Projections begin at zero, so that all that branches and logits are was learned."""
    heads = GQA(heads=width // 32)
    settings = {
        "vocabulary": 64, "width": width, "layers": layers, "context": 64, "tied": False,
        "attention": heads, "init": Zero(std=64**-0.5), "scaling": scaling,
       
    }  # fmt: skip
    return TransformerConfig(**{**settings, **more}).build(seed)


def states(model: Transformer) -> dict[str, Tensor]:
    """What parts of the model give for the rows."""
    found: dict[str, Tensor] = {}
    last = model.blocks[-1]
    watched = {
        "first": model.blocks[0], "stream": last, "attention": last.attention,
        "query": last.attention.q, "inner": last.mlp.up, "mlp": last.mlp,
    }  # fmt: skip

    def note(name: str, out) -> None:
        found[name] = (out[0] if isinstance(out, tuple) else out).detach()

    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, part in watched.items()
    ]
    note("logits", model(TOKENS[:, :-1]))
    for hook in hooks:
        hook.remove()
    return found


def sizes(model: Transformer, optimizer: Optimizer) -> dict[str, float]:
    """Mean |activation| after some steps on the same rows, and mean |change| by them."""
    updates, before = optimizer.build(model), states(model)
    for _ in range(STEPS):
        loss = -model.logprobs(TOKENS[:, :-1], TOKENS[:, 1:]).mean()
        loss.backward()
        updates.step()
        updates.zero_grad()
    after = states(model)
    learned = {f"{name}, learned": after[name] - before[name] for name in after}
    return {name: float(state.abs().mean()) for name, state in {**after, **learned}.items()}


def slopes(sizes_of, scales: list[int], seeds: int = 3) -> dict[str, float]:
    """Of log mean |activation| against log scale, by least squares, over some seeds."""
    x = torch.tensor([math.log(scale) for scale in scales for _ in range(seeds)])
    found = [sizes_of(scale, seed) for scale in scales for seed in range(seeds)]
    x = x - x.mean()
    return {
        name: float(
            (x * torch.tensor([math.log(one[name]) for one in found])).sum() / x.square().sum()
        )
        for name in found[0]
    }


WIDE, DEEP = (
    MuP(base_width=64, base_head_dim=32),
    CompleteP(base_width=64, base_head_dim=32, base_depth=2),
)
LAYERS = ("first", "stream", "query", "inner", "mlp")


def over_width(scaling, optimizer: Optimizer, widths: list[int], seeds: int) -> dict[str, float]:
    return slopes(lambda w, seed: sizes(built(w, 2, scaling, seed), optimizer), widths, seeds)


def over_depth(scaling, depths: list[int], seeds: int, rate: float = 0.01) -> dict[str, float]:
    adamw = AdamW(rate=rate)
    return slopes(lambda d, seed: sizes(built(64, d, scaling, seed), adamw), depths, seeds)


def check_width(scaling, optimizer: Optimizer, widths: list[int], seeds: int, bound: float) -> None:
    """Flat with the rule. Sums over few random numbers make attention and logits of narrow models a
    little larger, so that their slope is below zero and goes to it with the width."""
    found = over_width(scaling, optimizer, widths, seeds)
    for name in LAYERS:
        assert abs(found[name]) < bound, (name, found)
    for name in ("attention", "logits"):
        assert -0.2 < found[name] < bound, (name, found)


@pytest.mark.parametrize("scaling", [WIDE, DEEP])
def test_activations_do_not_grow_with_the_width(scaling) -> None:
    check_width(scaling, AdamW(rate=0.01), [64, 128, 256], 1, 0.1)


def test_control_without_the_rule_they_grow_with_the_width() -> None:
    found = over_width(None, AdamW(rate=0.01), [64, 128, 256], 1)
    assert min(found[name] for name in (*LAYERS, "attention", "logits")) > 0.4, found


def test_activations_do_not_grow_with_the_depth() -> None:
    found = over_depth(DEEP, [2, 4, 8], 1)
    assert max(abs(found[name]) for name in ("stream", "attention", "mlp", "logits")) < 0.1, found
    control = over_depth(WIDE, [2, 4, 8], 1)
    assert control["stream"] > 0.3, control


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [AdamW(rate=0.01), AdamW(rate=0.003)])
@pytest.mark.parametrize("scaling", [WIDE, DEEP])
def test_coordinate_check_over_width(scaling, optimizer) -> None:
    check_width(scaling, optimizer, [64, 128, 256, 512], 3, 0.05)


@pytest.mark.slow
def test_coordinate_check_of_muon() -> None:
    muon = Muon(rate=0.01)
    check_width(WIDE, muon, [64, 128, 256, 512], 3, 0.08)
    control = over_width(None, muon, [64, 128, 256], 1)
    assert min(control[name] for name in ("query", "inner", "mlp", "stream")) > 0.4, control


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.003, 0.01])
def test_coordinate_check_over_depth(rate) -> None:
    found = over_depth(DEEP, [2, 4, 8, 16], 3, rate)
    assert max(abs(found[name]) for name in ("stream", "attention", "mlp", "logits")) < 0.06, found


def test_golden_multiples() -> None:
    """Four times as wide, three times as deep (table 1 of arXiv 2505.01618)."""
    size = {"width": 1024, "layers": 12}
    wide = MuP()
    assert wide.multiples("matrix", **size) == Multiples(1 / 4, 4.0, 1.0)
    assert wide.multiples("orthogonal", **size) == Multiples(1 / 2, 2.0, 1.0)
    deep = CompleteP()
    assert deep.multiples("matrix", **size) == Multiples(1 / 4, 4.0, 1 / 12)
    assert deep.multiples("vector", **size) == Multiples(1.0, 1.0, 1 / 12)
    for place in ("embedding", "head", "norm"):
        assert wide.multiples(place, **size) == Multiples()
        assert deep.multiples(place, **size) == Multiples(1.0, 1.0, 1 / 4)


def test_multipliers_of_the_forward() -> None:
    config = built(256, 8, CompleteP(base_width=64, base_head_dim=32, base_depth=2)).config
    given = config.model_copy(update={"attention": (GQA(heads=2), MLA(heads=2))})
    found = given.resolved()
    assert (found.head_scale, found.residual.scale, found.scaling) == (1 / 4, 1 / 4, None)
    assert found.attention[0].scale == pytest.approx(32**0.5 / 128)
    assert found.attention[1].scale == pytest.approx(32**0.5 / 192)
    assert found.resolved() == found  # not twice
    model, plain = given.build(0), found.build(0)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_at_its_base_a_rule_changes_nothing() -> None:
    plain, ruled = built(64, 2, None), built(64, 2, DEEP)
    for left, right in zip(plain.parameters(), ruled.parameters(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(plain(TOKENS), ruled(TOKENS))
    assert sizes(plain, AdamW(rate=0.01)) == sizes(ruled, AdamW(rate=0.01))


def test_initial_weights_and_groups() -> None:
    mlp = MoE(experts=4, hidden=64, shared=1, bias=True)
    model = built(256, 8, DEEP, init=Llama(std=0.1), mlp=mlp)
    assert float(model.embed.weight.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert float(model.blocks[5].mlp.experts.down.weight.detach().std()) == pytest.approx(
        0.05, rel=0.02
    )
    groups = {
        g["name"]: g for g in AdamW(rate=1.0, eps=1.0, weight_decay=1.0).build(model).param_groups
    }
    facts = {n: (g["lr"], g["weight_decay"], g["eps"]) for n, g in groups.items()}
    assert facts == {
        "embedding": (1.0, 1.0, 1 / 4),
        "head": (1.0, 1.0, 1 / 4),
        "matrix": (1 / 4, 4.0, 1 / 16),
        "vector": (1.0, 0.0, 1 / 16),
        "norm": (1.0, 0.0, 1 / 4),
    }
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_adapters_keep_their_rates() -> None:
    model = built(256, 2, WIDE)
    LoRA(rank=2, lora_plus_ratio=4).apply(model, 0)
    rates = {g["name"]: g["lr"] for g in AdamW(rate=1.0).build(model).param_groups}
    assert rates == {"adapter": 1.0, "adapter b": 4.0}


def test_a_parameter_in_no_group_is_refused() -> None:
    model = built(64, 2, WIDE)
    model.extra = torch.nn.Linear(4, 4)
    with pytest.raises(TypeError, match=r"extra\.weight: no rule scales its learning rate"):
        AdamW().build(model)
    critic = torch.nn.ModuleDict({"model": built(64, 2, WIDE), "critic": torch.nn.Linear(64, 1)})
    with pytest.raises(SettingError, match=r"model\.scaling: .* critic\.weight"):
        AdamW().build(critic)
    plain = torch.nn.ModuleDict({"model": built(64, 2, None), "critic": torch.nn.Linear(64, 1)})
    assert "objective" in {group["name"] for group in AdamW().build(plain).param_groups}


def test_what_cannot_be() -> None:
    values = {"vocabulary": 9, "width": 16, "layers": 1, "attention": {"kind": "gqa", "heads": 2}}
    with pytest.raises(
        SettingError, match=r"model\.init: gpt2 already scales weights with the depth"
    ):
        parse(TransformerConfig, {**values, "scaling": "completep"}, "model")
    with pytest.raises(SettingError, match=r"model\.scaling\.base_width: "):
        parse(TransformerConfig, {**values, "scaling": {"kind": "mup", "base_width": 0}}, "model")
    with pytest.raises(SettingError, match=r"model\.scaling\.kind: 'sp' is not one of"):
        parse(TransformerConfig, {**values, "scaling": "sp"}, "model")
