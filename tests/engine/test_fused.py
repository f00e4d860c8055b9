"""One fused decoding step against the model's own, for every kind of weights and shape."""

import pytest
import torch
from fused_models import FEWEST, GROUPED, SHAPES, WEIGHTS, build, checked_steps, here, in_groups
from patch_models import patch_config

from culm.adapt.quantize.linear import QuantizedLinear
from culm.engine.engine import Engine
from culm.engine.fused import FusedDecoder
from culm.engine.fused_support import obstacle, uncomputed
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.block import Residual
from culm.model.cache import RollingCache
from culm.model.context import Context
from culm.model.mlp.gated import GeGLU
from culm.model.mtp import MTP
from culm.model.norm import LayerNormConfig, RMSNorm
from culm.model.transformer import TransformerConfig


def shape_serves(shape: str, weights: str) -> bool:
    return weights != "int4 of 64" or shape == "grouped"  # 64 divides neither 160 nor 288


CASES = [(s, w) for s in SHAPES for w in WEIGHTS if shape_serves(s, w)]


@here
@pytest.mark.parametrize(("shape", "weights"), CASES)
@torch.inference_mode()
def test_logits_and_cache_are_those_of_the_model(shape, weights):
    ours, theirs = checked_steps(shape, weights, [1, 4, 9, 13, 16, 20])
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        if isinstance(a, RollingCache):
            assert torch.equal(a.at, b.at)
        assert (a.tensors[0] - b.tensors[0]).norm() <= 0.03 * b.tensors[0].norm()
        assert (a.tensors[1] - b.tensors[1]).norm() <= 0.03 * b.tensors[1].norm()


@here
@pytest.mark.parametrize("shape", ["grouped", "as Gemma 2"])
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@torch.inference_mode()
def test_rows_in_panels(shape, weights):
    """More rows than tiles have, of which the last panel is not full."""
    checked_steps(shape, weights, [1 + 5 * row % 17 for row in range(37)])


@here
def test_steps_of_any_number_of_rows_are_fused(monkeypatch):
    stepped, step = [], FusedDecoder.__call__

    def counted(self, tokens, *rest):
        stepped.append(len(tokens))
        return step(self, tokens, *rest)

    monkeypatch.setattr(FusedDecoder, "__call__", counted)
    requests = [Request((1 + row % 70, 2), 3, Sampling(temperature=0)) for row in range(100)]
    model = build("grouped", "bf16")
    many = Engine(model, 100).generate(requests)
    assert stepped == [100, 100]
    few = Engine(model, 8).generate(requests)
    assert sum(a.tokens == b.tokens for a, b in zip(many, few, strict=True)) >= 98  # but for ties


@here
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_row_in_panels_depends_on_nothing_and_is_that_of_tiles(weights):
    model = build("grouped", weights)
    decoder = FusedDecoder(model, model.cache(37, 8))
    tokens, threads = list(range(37)), torch.get_num_threads()
    together = decoder(tokens, [0] * 37)
    try:
        torch.set_num_threads(3)
        assert torch.equal(decoder(tokens[:9], [0] * 9), together[:9])
    finally:
        torch.set_num_threads(threads)
    apart = (decoder(tokens[:8], [0] * 8) - together[:8]).abs().amax(-1)
    assert apart.max() <= 2e-2
    if weights != "bf16":  # sums in another order may round an activation to the next code
        assert apart.sort().values[-2] <= 1e-5


@here
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("rows", [8, 9])
@torch.inference_mode()
def test_an_outlier_coarsens_only_the_activations_of_its_group(weights, rows):
    model, exact, rounds = (build("grouped", weights) for _ in range(3))
    for one in (model, exact, rounds):
        for norm in (module for module in one.modules() if isinstance(module, RMSNorm)):
            norm.weight.data[::64] *= 50
    for one in (exact.float(), rounds.float()):
        one.dtype = torch.float32
    for layer in rounds.modules():
        if isinstance(layer, QuantizedLinear):
            layer.register_forward_pre_hook(
                lambda _, given: (in_groups(given[0], GROUPED[weights]),)
            )
    tokens = torch.arange(rows)
    right, rounded = (one(tokens[:, None])[:, 0] for one in (exact, rounds))
    found = FusedDecoder(model, model.cache(rows, 8))(tokens.tolist(), [0] * rows)
    assert float((found - right).norm() / (rounded - right).norm()) == pytest.approx(1, rel=0.15)


@here
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_row_does_not_depend_on_the_others_or_on_threads(weights):
    model = build("grouped", weights)
    cache = model.cache(7, 8)
    decoder = FusedDecoder(model, cache)
    together = decoder(list(range(7)), [0] * 7)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(decoder(list(range(7)), [0] * 7), together)
    finally:
        torch.set_num_threads(threads)
    for token in range(7):
        assert torch.equal(decoder([token] * FEWEST, [0] * FEWEST)[0], together[token])


@here
@pytest.mark.parametrize("shape", ["grouped", "windows", "as Gemma 2"])
def test_the_engine_gives_the_same_tokens_fused_or_not(shape):
    model = build(shape, "bf16")
    requests = [Request((3 + i, 9, 4)[: 1 + i % 3], 20, Sampling(temperature=0)) for i in range(20)]
    plain = Engine(model, 8, fused=False).generate(requests)
    fused = Engine(model, 8).generate(requests)
    gaps = []
    for request, a, b in zip(requests, plain, fused, strict=True):
        pairs = enumerate(zip(a.tokens, b.tokens, strict=True))
        first = next((place for place, (x, y) in pairs if x != y), None)
        if first is not None:  # only where the two most likely tokens are so up to rounding
            row = torch.tensor([[*request.prompt, *a.tokens[:first]]])
            logits = model(row)[0, -1].detach()
            best = logits.topk(2)
            assert set(best.indices.tolist()) == {a.tokens[first], b.tokens[first]}
            gaps.append(float((best.values[0] - best.values[1]) / logits.std()))
    assert len(gaps) <= 5
    assert max(gaps, default=0) < 0.05


@here
@pytest.mark.parametrize("shape", ["grouped", "many heads"])  # norms of heads; biases
@torch.inference_mode()
def test_weights_that_change_in_place_are_read_again(shape):
    model = build(shape, "bf16")
    engine, request = Engine(model, 1), Request((3, 9, 4), 12, Sampling(temperature=0))
    before = engine.generate([request])
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            weight.data.add_(torch.randn(weight.shape, generator=generator))
    after = engine.generate([request])
    assert after == Engine(model, 1).generate([request])
    assert after != before


@here
@pytest.mark.parametrize("shape", ["grouped", "as Gemma 2"])
@torch.inference_mode()
def test_activations_of_any_size_are_gated(shape):
    """The cube in GELU's tanh makes 1e16 of 1e5."""
    model = build(shape, "bf16")
    for block in model.blocks:
        block.mlp.gate.weight.data *= 1e5
        block.mlp.up.weight.data /= 1e5
    context = Context(torch.tensor([[0]]), cache=model.cache(1, 8).view(8))
    plain = model(torch.tensor([[3]]), context)[0, 0]
    fused = FusedDecoder(model, model.cache(1, 8))([3], [0])[0]
    assert (fused - plain).norm() < 0.03 * plain.norm()


@here
@torch.inference_mode()
def test_a_window_within_a_cache_that_does_not_roll():
    """Room for drafts makes a cache longer than its window, which still hides what is before."""
    model = build("windows", "bf16")
    caches = [model.cache(1, 12, rollback=8) for _ in range(2)]
    assert not any(isinstance(layer, RollingCache) for layer in caches[0].layers)
    decoder = FusedDecoder(model, caches[0])
    for place in range(12):
        context = Context(torch.tensor([[place]]), cache=caches[1].view(12))
        plain = model(torch.tensor([[place]]), context)[0, 0]
        assert (decoder([place], [place])[0] - plain).norm() < 0.03 * plain.norm()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"attention": (GQA(heads=4, sink_logits=True),)}, "attention.sink_logits=True"),
        ({"attention": (GQA(heads=4, alibi=True, rope=None),)}, "attention.alibi=True"),
        ({"mlp": (GeGLU(exact=True),)}, "mlp.exact=True"),
        ({"norm": LayerNormConfig()}, "norm.kind=layer"),
        ({"residual": Residual(parallel=True)}, "residual.parallel=True"),
        ({"attention": (GQA(heads=4, head_dim=24),)}, "head_dim"),
        ({"learned_positions": True}, "learned_positions=True"),
    ],
)
def test_it_says_what_it_does_not_compute(parts, words):
    config = TransformerConfig(**{"attention": (GQA(heads=4),), **parts}, vocabulary=9, width=64,
                               layers=1)  # fmt: skip
    model = config.build().to(torch.bfloat16)
    model.dtype = torch.bfloat16
    assert words in obstacle(model, model.cache(2, 16))


SIZES = {"vocabulary": 9, "width": 64, "layers": 1}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            TransformerConfig(**SIZES, attention=(Hyperbolic(heads=4),)),
            "attention.kind=hyperbolic",
        ),
        (TransformerConfig(**SIZES, attention=(GQA(heads=4),), mtp=MTP()), "mtp=MTP"),
        (patch_config("blt"), "kind=blt"),
    ],
)
def test_an_obstacle_names_a_part_and_not_all_that_is_set_in_it(config, said):
    assert list(uncomputed(config)) == [f"it does not compute {said}"]


def test_unsupported_models_decode_in_torch():
    model = build("grouped", "bf16")
    model.dtype = torch.float32
    assert obstacle(model, model.cache(2, 16))
    odd = TransformerConfig(vocabulary=9, width=24, layers=1, attention=(GQA(heads=2),)).build()
    odd.to(torch.bfloat16)
    odd.dtype = torch.bfloat16
    assert obstacle(odd, odd.cache(2, 16))
