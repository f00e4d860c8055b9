"""A hyperbolic decoder: its formulas by hand, its constraint, its limits, its Euclidean twin."""

import pytest
import torch
from torch import Tensor

from culm.config import parse
from culm.hyperbolic.lorentz import Lorentz, centroid_of, lift, lorentz_inner, offsets, time_of
from culm.hyperbolic.means import lorentz_centroid
from culm.model import block as blocks
from culm.model.attention import hyperbolic
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.block import Residual
from culm.model.context import Context, LayerContext
from culm.model.lorentz import lorentz_sum
from culm.model.mlp.hyperbolic import HyperbolicSwiGLU
from culm.model.norm import RMSNormConfig
from culm.model.transformer import Transformer, TransformerConfig

PARTS = {
    "attention": {"kind": "hyperbolic", "heads": 4},
    "mlp": {"kind": "hyperbolic", "hidden": 64},
    "residual": {"curvature": 1.0},
}


def built(**settings) -> Transformer:
    values = {"vocabulary": 61, "width": 32, "layers": 2, "context": 32, **PARTS, **settings}
    return parse(TransformerConfig, values).build(seed=0)


def attention(curvature: float, **settings) -> tuple[torch.nn.Module, Tensor, LayerContext]:
    config = Hyperbolic(heads=2, rope=None, curvature=curvature, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = config.build(16, RMSNormConfig(), -1)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 7, 16)
    return module, x, LayerContext.of(Context.plain(x))


@pytest.mark.parametrize("curvature", [0.5, 1.0, 2.0])
@torch.no_grad()
def test_attention_is_distances_and_centroids(curvature: float) -> None:
    """By a loop over tokens and heads, on complete points."""
    module, x, context = attention(curvature)

    def mapped(part: torch.nn.Module, space: Tensor) -> Tensor:
        """By one matrix on the complete point, less the origin."""
        weight = torch.cat((part.time[:, None], part.space.weight), 1)
        points = lift(space, curvature)
        return (points - Lorentz(curvature).origin(points)) @ weight.T

    q, k, v = (
        lift(mapped(part, x).unflatten(-1, (2, 8)), curvature)
        for part in (module.q, module.k, module.v)
    )
    heads = torch.empty(2, 7, 2, 8)
    for row in range(2):
        for token in range(7):
            for head in range(2):
                difference = q[row, token, head] - k[row, : token + 1, head]
                squares = lorentz_inner(difference, difference)[:, 0]
                weights = (-(8**-0.5) * squares).softmax(0)
                centre = lorentz_centroid(v[row, : token + 1, head], weights, curvature)
                heads[row, token, head] = centre[1:]
    found = mapped(module.out, heads.flatten(-2))
    torch.testing.assert_close(module(x, context, None), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("curvature", [1e-6, 1e-8, 1e-16])
@torch.no_grad()
def test_curvature_to_zero_is_euclidean_attention(curvature: float) -> None:
    """Scores are Euclidean distances then, values are averaged, and the times are without effect:
    with an error that falls as sqrt(c).
    """
    module, x, context = attention(curvature)
    q, k, v = (part.space(x).unflatten(-1, (2, 8)) for part in (module.q, module.k, module.v))
    away = (q[:, :, None] - k[:, None]).square().sum(-1)  # (B, T, S, H)
    seen = torch.ones(7, 7).tril()[None, :, :, None].bool()
    weights = (-(8**-0.5) * away).masked_fill(~seen, -torch.inf).softmax(2)
    mean = torch.einsum("btsh,bshd->bthd", weights, v)
    expected = module.out.space(mean.flatten(-2))
    share = max(1e-5, 40 * curvature**0.5)
    torch.testing.assert_close(module(x, context, None), expected, atol=share, rtol=share)
    scores = module.weights(x, context)
    torch.testing.assert_close(scores, weights.permute(0, 3, 1, 2), atol=share, rtol=share)


@torch.no_grad()
def test_curvature_to_zero_is_a_euclidean_feed_forward() -> None:
    module, x = HyperbolicSwiGLU(hidden=24, curvature=1e-12).build(16), torch.randn(2, 7, 16)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gate, up, down = (part.space for part in (module.gate, module.up, module.down))
    expected = down(torch.nn.functional.silu(gate(x)) * up(x))
    context = LayerContext.of(Context.plain(x))
    torch.testing.assert_close(module(x, context), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e3, 3e3, 1e5])
def test_values_far_out_are_averaged_to_finite_ones(scale: float) -> None:
    """In fp32 the times of such points have no digits left for the 1 / c."""
    module, x, context = attention(1.0)
    far = (scale * x).requires_grad_()
    found = module(far, context, None)
    found.sum().backward()
    assert found.isfinite().all()
    assert found.abs().max() < 100 * scale
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("curvature", [1e-6, 0.5, 3.0])
def test_the_centroid_of_offsets_is_that_of_points(curvature: float) -> None:
    random = torch.Generator().manual_seed(0)
    space = torch.randn(5, 9, 4, generator=random, dtype=torch.float64)
    weights = torch.rand(5, 9, generator=random, dtype=torch.float64).softmax(-1)
    mean = (weights[..., None] * offsets(space, curvature)).sum(-2)
    expected = lorentz_centroid(lift(space, curvature), weights, curvature)
    torch.testing.assert_close(centroid_of(mean, curvature), expected, atol=1e-9, rtol=1e-9)


def test_points_stay_on_the_hyperboloid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every centroid and every sum of a forward in fp32: its time, which is dropped, is that of the
    point which is kept; and that one is on the hyperboloid, as every state is, by construction.
    """
    seen: list[Tensor] = []

    def kept(function):
        def call(*given):
            seen.append(function(*given))
            return seen[-1]

        return call

    monkeypatch.setattr(hyperbolic, "centroid_of", kept(hyperbolic.centroid_of))
    monkeypatch.setattr(blocks, "lorentz_sum", kept(blocks.lorentz_sum))
    model = built(width=128, layers=4)
    model(torch.arange(32)[None] % 61)
    assert len(seen) == 4 * 3  # a centroid and two sums in each layer
    for x in (point.detach() for point in seen):
        lifted = lift(x[..., 1:], 1.0).double()  # as the next part lifts it, in fp32
        assert float((lorentz_inner(lifted, lifted) + 1).abs().max()) < 1e-4
        assert float((x[..., :1] - time_of(x[..., 1:], 1.0)).abs().max()) < 1e-5
        kept_point = lift(x[..., 1:].double(), 1.0)
        assert float((lorentz_inner(kept_point, kept_point) + 1).abs().max()) < 1e-10


def test_sum_of_points() -> None:
    """Of equal points it is the point; of others it lies between them, near the heavier one."""
    x, y = torch.tensor([[0.3, 0.4], [-0.5, 0.2]])
    one = lift(x, 1.0)
    torch.testing.assert_close(lorentz_sum(x, x, torch.tensor(1.7), 1.0), one)
    space = Lorentz()
    middle = lorentz_sum(x, y, torch.tensor(1.0), 1.0)
    near, far = space.distance(middle, one), space.distance(middle, lift(y, 1.0))
    torch.testing.assert_close(near, far)
    assert space.distance(lorentz_sum(x, y, torch.tensor(3.0), 1.0), one) > near


@torch.no_grad()
def test_the_future_is_not_seen() -> None:
    model, tokens = built(), torch.arange(20)[None] % 61
    changed = tokens.clone()
    changed[0, 12:] = 7
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_it_overfits_one_batch() -> None:
    """Below the entropy of single tokens, which a model without attention would reach."""
    model = built(attention={**PARTS["attention"], "learned_curvature": True})
    tokens = torch.randint(61, (4, 24), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        loss = -model.logprobs(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0
    weights = model.get_parameter("blocks.0.weights")
    assert weights.grad.abs().min() > 0
    assert model.get_parameter("blocks.0.attention.curvature.log").item() != 0


def test_twin_has_the_same_parameters() -> None:
    """Weights of times against biases; the inner width makes up for those of the feed-forward."""
    twin = built(
        attention={"kind": "gqa", "heads": 4, "bias": True, "out_bias": True},
        mlp={"kind": "swiglu", "hidden": 66}, residual={},
    )  # fmt: skip
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in (built(), twin))
    assert abs(ours - theirs) / theirs < 3e-3


def test_settings_that_are_refused() -> None:
    for settings, message in (
        ({"attention": {"kind": "hyperbolic", "heads": 4, "kv_heads": 3}}, r"kv_heads: 3 does not"),
        ({"attention": {"kind": "hyperbolic", "heads": 5}}, r"heads: 5 does not divide width=32"),
        ({"attention": {"kind": "hyperbolic", "heads": 4, "curvature": 0}}, r"curvature: "),
        ({"residual": {"curvature": 1.0, "parallel": True}}, r"curvature: parallel and gains add"),
        ({"residual": {"stretch": 2.0}}, r"stretch: it has an effect with curvature only"),
    ):
        with pytest.raises(ValueError, match=message):
            built(**settings)


def test_parts_have_defaults() -> None:
    config = Hyperbolic(heads=4).resolved(64)
    assert (config.head_dim, config.kv_heads, config.scale) == (16, 4, 0.25)
    assert HyperbolicSwiGLU().resolved(48).hidden == 128
    assert Residual().curvature is None
