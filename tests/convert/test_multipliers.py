"""A model with a scaling rule is exported as one without: the same logits."""

import pytest
import torch

from culm.convert import gguf, hf
from culm.convert.load import read
from culm.model.scaling import CompleteP

RULE = CompleteP(base_width=32, base_depth=1, base_head_dim=64)
ATTENTION = {"kind": "gqa", "heads": 4, "kv_heads": 2}
SHAPES = {
    "llama": {"attention": ATTENTION},
    "qwen3": {"attention": {**ATTENTION, "qk_norm": "head"}},
    "qwen2": {"attention": {**ATTENTION, "bias": True}},
    "olmo2": {"attention": {**ATTENTION, "qk_norm": "width"}, "residual": {"norm": "behind"}},
    "mixtral": {
        "attention": ATTENTION, "mlp": {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 96},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_exported_with_its_multipliers_in_the_weights(tiny, tokenizer, tokens, tmp_path, name):
    model = tiny(**SHAPES[name], scaling=RULE, init="llama", tied=False)
    plain = model.config.model_copy(update={"scaling": None}).build(0)
    plain.load_state_dict(model.state_dict())
    hf.export(model, tokenizer, tmp_path / "out")
    again, _ = read(tmp_path / "out", "cpu", torch.float32)
    with torch.no_grad():
        wanted = model(tokens)
        torch.testing.assert_close(again(tokens), wanted, atol=1e-4, rtol=1e-4)
        assert (plain(tokens) - wanted).abs().max() > 1e-2  # the rule does something
    if name in ("llama", "qwen3"):
        gguf.export(model, tokenizer, tmp_path / "out.gguf", "f32")
        again, _ = read(tmp_path / "out.gguf", "cpu", torch.float32)
        torch.testing.assert_close(again(tokens), wanted, atol=1e-4, rtol=1e-4)
