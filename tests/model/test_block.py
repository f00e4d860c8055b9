"""The branches of a block, and its further outputs."""

import pytest
import torch

from culm.model.attention.gqa import GQA
from culm.model.block import Residual
from culm.model.context import Context, LayerContext
from culm.model.mlp.gated import GeGLU, SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.mlp.plain import Plain
from culm.model.norm import LayerNormConfig, RMSNormConfig
from culm.model.transformer import TransformerConfig

TOKENS = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def build(**settings):
    values = {"vocabulary": 60, "width": 32, "layers": 3, "context": 64}
    attention = {"attention": GQA(heads=4, kv_heads=2)}
    return TransformerConfig(**{**values, **attention, **settings}).build(seed=0)


@pytest.mark.parametrize("norm", ["before", "behind", "both"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_by_hand(norm, parallel):
    block = build(residual=Residual(norm=norm, parallel=parallel, scale=0.5)).blocks[0]
    x, plain = torch.randn(2, 5, 32), Context.plain(TOKENS[:, :5])
    rotation = build().rotations[0](plain.positions)
    context = LayerContext(plain.positions, rotations=(rotation,))
    first, last = norm != "behind", norm != "before"

    def branch(part, before, behind, x, *more):
        y = part(before(x) if first else x, context, *more)
        return 0.5 * (behind(y) if last else y)

    mixed = branch(block.attention, block.attention_norm, block.attention_out_norm, x, None)
    read = x if parallel else x + mixed
    made = branch(block.mlp, block.mlp_norm, block.mlp_out_norm, read)
    found, values, routing = block(x, context, None)
    assert torch.allclose(found, x + mixed + made, atol=1e-6)
    assert (values, routing) == (None, None)
    assert len([name for name, _ in block.named_parameters() if "norm" in name]) == 2 * (
        first + last
    )


def test_gains_start_without_effect_and_mix_in_the_embedding():
    plain, model = build(), build(residual=Residual(gains=True))
    assert torch.equal(model(TOKENS), plain(TOKENS))
    model.blocks[2].gains.data = torch.tensor([0.0, 1.0])
    one = build(layers=1, residual=Residual(gains=True))
    one.blocks[0].load_state_dict(model.blocks[2].state_dict())
    one.blocks[0].gains.data = torch.tensor([1.0, 0.0])
    assert torch.allclose(model(TOKENS), one(TOKENS), atol=1e-6)


def test_value_residual_with_nothing_of_the_first_layer_is_plain():
    attention = GQA(heads=4, kv_heads=2, value_residual=True)
    plain, model = build(), build(attention=attention)
    for block in model.blocks:
        block.attention.shares.data = torch.tensor([1.0, 0.0])
    assert torch.allclose(model(TOKENS), plain(TOKENS), atol=1e-6)
    model.blocks[2].attention.shares.data = torch.tensor([0.0, 1.0])
    before = model(TOKENS)
    model.blocks[2].attention.v.weight.data.zero_()  # whose values are not used any more
    assert torch.equal(model(TOKENS), before)


def test_dropout_is_for_training_alone():
    model, plain = build(residual=Residual(dropout=0.5)), build()
    assert not torch.equal(model(TOKENS), plain(TOKENS))
    assert torch.equal(model.eval()(TOKENS), plain(TOKENS))


@pytest.mark.parametrize(
    ("mlp", "by_hand"),
    [
        (SwiGLU(hidden=48), lambda m, x: m.down(torch.nn.functional.silu(m.gate(x)) * m.up(x))),
        (
            GeGLU(hidden=48, exact=True),
            lambda m, x: m.down(torch.nn.functional.gelu(m.gate(x)) * m.up(x)),
        ),
        (Plain(activation="relu2"), lambda m, x: m.down(m.up(x).clamp(min=0) ** 2)),
        (Plain(hidden=40, activation="gelu_tanh", bias=True), lambda m, x: m.down(
            torch.nn.functional.gelu(m.up(x), approximate="tanh"))),
    ],
)  # fmt: skip
def test_feed_forwards_by_hand(mlp, by_hand):
    part, x = build(mlp=mlp).blocks[0].mlp, torch.randn(2, 5, 32)
    assert torch.allclose(part(x, LayerContext.plain(TOKENS[:, :5])), by_hand(part, x), atol=1e-6)


def test_norms_by_hand():
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    for config, weight in ((RMSNormConfig(), 1.0), (RMSNormConfig(centered=True), 0.0)):
        norm = build(norm=config).norm
        assert (norm.weight == weight).all()
        expected = x.float() / (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(norm(x).float(), expected, atol=2e-2)
    norm = build(norm=LayerNormConfig()).norm
    assert torch.allclose(norm(x.float()).mean(-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(norm(x.float()).std(-1, correction=0), torch.ones(3), atol=1e-3)


def test_routings_are_recorded_on_request():
    model = build(mlp=(SwiGLU(), MoE(experts=4, top_k=2, hidden=16, z_loss=1e-3)))
    context = Context(Context.plain(TOKENS).positions, routings=[])
    model(TOKENS, context)
    assert [routing.counts.sum() for routing in context.routings] == [2 * TOKENS.numel()]
    assert context.routings[0].loss > 0


def test_scales_and_softcap_of_the_logits():
    plain = build(tied=False)
    model = build(tied=False, embedding_scale=3.0, softcap=2.0, head_scale=0.5)
    plain.embed.weight.data *= 3.0
    expected = 2.0 * torch.tanh(0.5 * plain(TOKENS) / 2.0)
    assert torch.allclose(model(TOKENS), expected, atol=1e-6)
    logprobs = expected[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])[..., 0]
    found = model.logprobs(TOKENS[:, :-1], TOKENS[:, 1:])
    assert torch.allclose(found, logprobs, atol=1e-5)


def test_learned_positions():
    model = build(learned_positions=True, attention=GQA(heads=4, rope=None))
    same = torch.zeros(1, 8, dtype=torch.int64)
    assert not torch.allclose(model(same)[0, 0], model(same)[0, 5])
    model.positions.weight.data.zero_()
    assert torch.allclose(model(same)[0, 0], model(same)[0, 5], atol=1e-6)
