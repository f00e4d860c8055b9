"""A trunk alone, on vectors: causal, separate documents, equal through a cache, and it learns."""

import pytest
import torch
from torch import Tensor

from culm.config import SettingError, parse
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.attention.mla import MLA
from culm.model.block import Residual
from culm.model.context import CacheView, Context
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig
from culm.model.trunk import Trunk, TrunkConfig

ATTENTIONS = {
    "gqa": GQA(heads=4, kv_heads=2),
    "window": GQA(heads=4, window=6),
    "value residual": GQA(heads=4, value_residual=True),
    "latent": MLA(heads=4, rank=16, head_dim=8, rope_dim=4, value_dim=6),
    "state": DeltaNet(heads=4, head_dim=8),
    "hyperbolic": Hyperbolic(heads=4),
}


def config(**more) -> TrunkConfig:
    settings = {"width": 32, "layers": 2, "context": 64, "attention": ATTENTIONS["gqa"]}
    return TrunkConfig(**{**settings, **more})


def vectors(rows: int = 2, length: int = 20, width: int = 32) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(0))


def test_settings_name_no_vocabulary() -> None:
    values = {"width": 32, "layers": 2, "attention": {"kind": "gqa", "heads": 4}}
    trunk = parse(TrunkConfig, values).build(seed=0)
    assert {name.partition(".")[0] for name, _ in trunk.named_parameters()} == {"blocks", "norm"}
    with pytest.raises(SettingError, match="vocabulary"):
        parse(TrunkConfig, {**values, "vocabulary": 9})


def test_it_is_the_trunk_of_a_transformer() -> None:
    """The same names, initial weights and states as between the ends of a language model."""
    more = {"residual": Residual(gains=True), "attention": ATTENTIONS["value residual"]}
    trunk = config(**more).build(seed=3)
    whole = TransformerConfig(**{**trunk_settings(config(**more)), "vocabulary": 50})
    model = whole.build(seed=3)
    weights = model.state_dict()
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    tokens = torch.arange(20).expand(2, -1) % 50
    assert torch.equal(trunk(model.embed(tokens)), model.hidden(tokens))


def trunk_settings(config: TrunkConfig) -> dict:
    return {name: getattr(config, name) for name in TrunkConfig.model_fields}


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_the_future_changes_nothing(name: str) -> None:
    trunk, x = config(attention=ATTENTIONS[name]).build().eval(), vectors()
    changed = x.clone()
    changed[:, 12:] += 1
    before, after = trunk(x), trunk(changed)
    torch.testing.assert_close(after[:, :12], before[:, :12], atol=1e-6, rtol=0)
    assert (after[:, 12:] - before[:, 12:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_documents_of_a_row_do_not_see_each_other(name: str) -> None:
    trunk, x = config(attention=ATTENTIONS[name]).build().eval(), vectors()
    places = torch.arange(20).expand(2, -1)
    packed = trunk(x, Context(places % 10, places // 10))
    separate = torch.cat([trunk(part) for part in x.split(10, dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=0)
    assert (packed - trunk(x))[:, 10:].abs().max() > 1e-3


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_reading_in_pieces_through_a_cache_equals_reading_at_once(name: str) -> None:
    trunk, x = config(attention=ATTENTIONS[name]).build().eval(), vectors()
    cache, pieces, start = trunk.cache(2, 32), [], 0
    for size in (7, 1, 1, 9, 2):
        positions = torch.arange(start, start + size).expand(2, -1)
        view = CacheView(cache.layers, length=start + size)
        pieces.append(trunk(x[:, start : start + size], Context(positions, cache=view)))
        start += size
    torch.testing.assert_close(torch.cat(pieces, 1), trunk(x), atol=1e-4, rtol=0)


def test_activations_have_its_dtype() -> None:
    trunk = config().build()
    trunk.dtype = torch.bfloat16
    assert trunk(vectors()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_keys_and_values_of_bf16_are_in_fp16_on_a_cpu_alone(kind: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        trunk = config().build()
        trunk.dtype = dtype
        stored = {t.dtype for t in trunk.cache(1, 8, kind).layers[0].tensors}
        kept = torch.float16 if dtype == torch.bfloat16 else dtype
        assert stored - {torch.uint8, torch.int64} == {kept}
    elsewhere = config().build().to("meta")
    elsewhere.dtype = torch.bfloat16
    assert elsewhere.cache(1, 8).layers[0].tensors[0].dtype == torch.bfloat16


def test_experts_report_to_the_caller() -> None:
    trunk = config(mlp=(SwiGLU(), MoE(experts=4, hidden=16))).build()
    context = Context(Context.plain(vectors()).positions, routings=[])
    trunk(vectors(), context)
    assert [routing.counts.sum() for routing in context.routings] == [2 * 2 * 20]


def learned_error(trunk: Trunk, shown: int) -> float:
    """Mean squared error after training to predict the next point of rotating vectors.

    Each row turns by its own angle, so one point says nothing about the next one. shown: points
    that the model may read back.
    """
    angles = torch.rand(64, 1, generator=torch.Generator().manual_seed(1)) * 3
    times = torch.arange(13.0)[None] * angles
    points = torch.stack((times.cos(), times.sin()), -1)  # (64, 13, 2)
    into, out = torch.nn.Linear(2, 32), torch.nn.Linear(32, 2)
    context = Context.plain(points[:, :-1])
    documents = torch.arange(12).expand(64, -1) // shown
    context = Context(context.positions % shown, documents)
    modules = torch.nn.ModuleList([trunk, into, out])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=3e-3)
    for _ in range(150):
        guess = out(trunk(into(points[:, :-1]), context))
        error = (guess - points[:, 1:])[:, shown - 1 :: shown].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return float(error.detach())


@pytest.mark.slow
def test_it_learns_from_earlier_vectors() -> None:
    """A control that may not read back stays where the mean of all rows is."""
    torch.manual_seed(0)
    trained, control = (learned_error(config().build(), shown) for shown in (6, 1))
    assert trained < 0.02 < 0.1 < control
