import json

import pytest

from culm.compose import read_yaml
from culm.config import SettingError, parse
from culm.convert import teaching_json
from culm.model.transformer import TransformerConfig

GIVEN = {
    "vocab_size": 100277,
    "context_length": 2048,
    "emb_dim": 2048,
    "n_heads": 16,
    "n_layers": 16,
    "n_kv_groups": 4,
    "drop_rate": 0.0,
    "qkv_bias": False,
    "norm_type": "rmsnorm",
    "ff_type": "swiglu",
    "tie_embeddings": True,
}


def write(folder, **changes):
    path = folder / "blueprint.json"
    values = {**GIVEN, **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
    return path


def test_it_becomes_model_settings(tmp_path):
    config = teaching_json.read(write(tmp_path))
    assert (config.vocabulary, config.width, config.layers, config.context) == (
        100277,
        2048,
        16,
        2048,
    )
    assert config.attentions[0].kv_heads == 4
    assert config.tied
    config.build(device="meta")
    teaching_json.write(config, tmp_path / "model.yaml")
    assert parse(TransformerConfig, read_yaml(tmp_path / "model.yaml")) == config


def test_every_optional_key(tmp_path):
    changes = {"qkv_bias": True, "hidden_dim": 5632, "n_kv_heads": 8, "n_kv_groups": "absent"}
    config = teaching_json.read(write(tmp_path, tie_embeddings=False, **changes))
    attention = config.attentions[0]
    assert (attention.bias, attention.kv_heads, config.mlps[0].hidden) == (True, 8, 5632)
    assert not config.tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 16}, "n_head: no such setting; known: vocab_size, emb_dim"),
        ({"n_heads": "absent"}, "n_heads: this setting is needed"),
        ({"drop_rate": 0.1}, "drop_rate: 0.1 is not supported, only 0"),
        ({"norm_type": "layernorm"}, "norm_type: 'layernorm' is not supported, only 'rmsnorm'"),
        ({"ff_type": "gelu"}, "ff_type: 'gelu' is not supported, only 'swiglu'"),
        ({"n_kv_heads": 8}, "n_kv_groups: it differs from n_kv_heads"),
        ({"emb_dim": 2050}, "heads: 16 does not divide width=2050"),
        ({"n_kv_groups": 3}, "kv_heads: 3 does not divide heads=16"),
        ({"n_layers": "many"}, "layers"),
        ({"n_layers": [1]}, "layers"),
        ({"norm_type": ["rmsnorm"]}, "norm_type"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(SettingError, match=rf"blueprint\.json\S* {message}|\.{message}"):
        teaching_json.read(write(tmp_path, **changes))
