"""Models near a family, with one setting changed: what is exported computes the same there, and
what would not is refused."""

import warnings

import numpy as np
import pytest
import torch
from family_models import FAMILIES, logits_of, peer_of, saved

from culm.config import SettingError, parse
from culm.convert import gguf, hf
from culm.model.transformer import TransformerConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

# Of every attention or feed-forward, or of the whole: a setting and its new value.
CHANGES = {
    "attention": [
        {"head_dim": 8},
        {"kv_heads": 1},
        {"window": None},
        {"window": 9},
        {"qk_norm": "head"},
        {"qk_norm": None},
        {"bias": True, "out_bias": True},
        {"rope": {"base": 5e5}},
        {"rope": {"fraction": 0.5}},
        {"rope": {"scaling": {"kind": "yarn", "factor": 4.0, "original": 32}}},
        {"rope": {"scaling": {"kind": "linear", "factor": 2.0}}},
        {"softcap": 20.0},
        {"scale": 0.3},
    ],
    "mlp": [
        {"kind": "geglu"},
        {"activation": "gelu_tanh"},
        {"activation": "relu2"},
        {"hidden": 64},
    ],
    "": [{"tied": True}, {"tied": False}, {"softcap": 15.0}, {"norm": "layer"}],
}


def changed(model, part, change):
    """The model with other settings, new initial weights; None if they do not fit together."""
    values = model.config.model_dump(mode="json")
    for place in values[part] if part else [values]:
        if not place.keys() >= change.keys():
            return None
        place.update(change)
    try:
        config = parse(TransformerConfig, values)
    except SettingError:
        return None
    other, drawn = config.build(seed=1), torch.Generator().manual_seed(2)
    for parameter in other.parameters():
        size = 0.1 if parameter.dim() == 1 else 0.12
        parameter.data += size * torch.randn(parameter.shape, generator=drawn)
    return other.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_exported_is_the_same_there(name, tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    base, _ = hf.load(saved(peer_of(name), tokenizer, tmp_path / "base"))
    rows = torch.randint(3, 300, (1, 30), generator=torch.Generator().manual_seed(0))
    written = {"hf": 0, "gguf": 0}
    for part, changes in CHANGES.items():
        for number, change in enumerate(changes):
            model = changed(base, part, change)
            if model is None:
                continue
            expected, told = model(rows).detach(), f"{part} {change}"
            folder, file = tmp_path / f"{part}{number}", tmp_path / f"{part}{number}.gguf"
            try:
                hf.export(model, tokenizer, folder)
            except SettingError:
                pass
            else:
                with warnings.catch_warnings(action="ignore"):
                    auto = transformers.AutoModelForCausalLM
                    peer = auto.from_pretrained(folder, attn_implementation="eager")
                assert (logits_of(peer, rows) - expected).abs().max() <= 1e-4, told
                assert (hf.load(folder)[0].eval()(rows) - expected).abs().max() <= 1e-5, told
                written["hf"] += 1
            try:
                gguf.export(model, tokenizer, file, "f32")
            except SettingError:
                continue
            assert (gguf.load(file)[0].eval()(rows) - expected).abs().max() <= 1e-5, told
            other = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
            other.eval(rows[0].tolist())
            far = np.abs(np.array(other.scores[:30]) - expected[0].numpy()).max(-1)
            # Rounding in its cache may choose another expert, and then all is different.
            sparse = any(mlp.kind == "moe" for mlp in model.config.mlp)
            assert far[: 4 if sparse else None].max() <= 0.05, told
            written["gguf"] += 1
    assert min(written.values()) >= (0 if name in ("Mistral", "Phi-3") else 1), written
