"""Hyperbolic adapters: their formula, their Euclidean limit, and a run that keeps them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from stages import Settings
from torch import Tensor

from culm.adapt.hyplora import LONGEST, HypLoRA, HypLoRALinear, hyperbolic_adapters
from culm.config import SettingError, parse
from culm.convert.export import export
from culm.convert.load import load_model
from culm.hyperbolic.lorentz import Lorentz, lift
from culm.model.linear import Linear
from culm.run.settings import RunConfig
from culm.run.train import train


def adapted(curvature: float, scale: float = 0.3) -> tuple[HypLoRALinear, Tensor]:
    chance = torch.Generator().manual_seed(0)
    base = Linear(12, 9)
    base.weight.data.normal_(generator=chance)
    layer = HypLoRALinear(base, HypLoRA(rank=4, alpha=8, curvature=curvature))
    layer.a.data.normal_(0, scale, generator=chance)
    layer.b.data.normal_(0, scale, generator=chance)
    return layer, torch.randn(5, 12, generator=chance)


@torch.no_grad()
def test_by_maps_of_the_lorentz_model() -> None:
    """The origin's exponential map, the low-rank map of space parts, and the logarithmic map."""
    layer, x = adapted(0.5)
    space = Lorentz(0.5)
    points = space.from_origin(x)
    mapped = lift(points[:, 1:] @ layer.a.T @ layer.b.T, 0.5)
    back = space.log(space.origin(mapped), mapped)
    assert back[:, 0].abs().max() < 1e-5  # a tangent vector at the origin has no time
    torch.testing.assert_close(layer(x), layer.base(x) + 2 * back[:, 1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_curvature_to_zero_is_lora() -> None:
    layer, x = adapted(1e-9)
    expected = layer.base(x) + 2 * F.linear(F.linear(x, layer.a), layer.b)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_long_inputs_stay_finite() -> None:
    layer, x = adapted(1.0)
    direction = x / x.norm(dim=-1, keepdim=True)
    far, cut = layer(1e6 * direction), layer(LONGEST * direction)
    assert far.isfinite().all()
    torch.testing.assert_close(
        far - layer.base(1e6 * direction), cut - layer.base(LONGEST * direction), atol=1, rtol=1e-3
    )


def test_a_run_keeps_its_adapters(stage: Settings, tmp_path: Path) -> None:
    """Trained adapters are in the model, which answers as it did in training; no other format has
    them.
    """
    pretrained, run = tmp_path / "base", tmp_path / "run"
    settings = stage("pretrain", steps=1)
    train(parse(RunConfig, settings | {"folder": str(pretrained)}))
    settings |= {"folder": str(run), "start": str(pretrained), "model": None, "tokenizer": None}
    settings["train"] |= {
        "adapter": {"kind": "hyplora", "rank": 2, "curvature": 0.1}, "optimizer": "adamw"
    }  # fmt: skip
    assert train(parse(RunConfig, settings)).finished
    model, _ = load_model(run)
    base, _ = load_model(pretrained)
    layers = hyperbolic_adapters(model)
    assert layers
    assert all(layer.b.abs().max() > 0 for layer in layers.values())
    tokens = torch.arange(12)[None]
    assert not torch.allclose(model(tokens), base(tokens))
    for layer in layers.values():
        layer.b.data.zero_()
    torch.testing.assert_close(model(tokens), base(tokens))
    with pytest.raises(SettingError, match="hyperbolic adapters are not linear"):
        export(str(run), str(tmp_path / "out.gguf"), "f32", "")
