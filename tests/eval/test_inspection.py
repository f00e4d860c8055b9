"""What is seen inside a model is what it computes."""

import pytest
import torch

from culm.eval.inspection import (
    BINS,
    activations_of,
    attention_maps,
    logit_lens,
    spread,
    weights_of,
)
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.transformer import TransformerConfig

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
KINDS = {
    "plain": GQA(heads=4, kv_heads=2),
    "everything": GQA(heads=4, window=3, sink_tokens=1, softcap=2.0, sink_logits=True, bias=True),
    "alibi": GQA(heads=4, rope=None, alibi=True),
    "latent": MLA(heads=4, rank=16, head_dim=8, rope_dim=4, value_dim=6),
}


def build(attention=KINDS["plain"]):
    config = TransformerConfig(vocabulary=20, width=32, layers=3, context=16, attention=attention)
    return config.build(seed=0).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_maps_times_values_is_what_attention_gives(kind):
    model = build(KINDS[kind])
    caught = {}
    attention = model.blocks[1].attention
    attention.out.register_forward_pre_hook(lambda _, inputs: caught.update(heads=inputs[0]))
    attention.v.register_forward_hook(lambda _, __, out: caught.update(values=out))
    maps = attention_maps(model, IDS)
    assert list(maps) == [0, 1, 2]
    model(torch.tensor([IDS]))
    values = caught["values"][0].unflatten(-1, (-1, caught["heads"].shape[-1] // 4))
    values = values.repeat_interleave(4 // values.shape[1], dim=1)
    expected = torch.einsum("hts,shd->thd", maps[1], values).flatten(1)
    assert torch.allclose(caught["heads"][0], expected, atol=1e-5)
    assert not maps[1].triu(1).any()


def test_the_last_row_of_the_lens_is_the_model():
    model = build()
    found = logit_lens(model, IDS)
    assert found.shape == (4, len(IDS), 20)
    assert torch.allclose(found[-1], model(torch.tensor([IDS]))[0].log_softmax(-1), atol=1e-5)
    first = model.logits(model.norm(model.embed(torch.tensor(IDS))))
    assert torch.allclose(found[0], first.log_softmax(-1), atol=1e-5)


def test_histograms_count_everything():
    model = build()
    parts = dict(weights_of(model))
    assert parts["blocks.*.mlp.up.weight"].counts.sum() == 3 * model.blocks[0].mlp.up.weight.numel()
    assert parts["blocks.*.mlp.up.weight"].std == pytest.approx(0.02, rel=0.05)
    names = [name for name, _ in activations_of(model, IDS)]
    assert names == ["before blocks.0", "before blocks.1", "before blocks.2"]
    constant = spread(torch.ones(7))
    assert (constant.counts.sum(), len(constant.edges)) == (7, BINS + 1)
