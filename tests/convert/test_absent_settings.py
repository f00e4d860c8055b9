"""Settings that a config.json lacks, or sets to null, have the values that transformers takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError
from culm.convert.hf.families import FAMILIES
from culm.convert.hf.folder import read_config

transformers = pytest.importorskip("transformers")

COMMON = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 30,  # more than the 28 after which Qwen2 has windows
    "num_attention_heads": 32,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 16}
MLA = {"n_routed_experts": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "moe_intermediate_size": 16}
GPT2 = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_positions": 64, "n_head": 4}
NEOX = {**COMMON, "hidden_size": 512}
GIVEN = {
    "gpt2": GPT2,
    "gpt_neox": {n: v for n, v in NEOX.items() if n not in ("num_key_value_heads", "head_dim")},
    "deepseek_v3": {**COMMON, **MLA},
    **{name: {**COMMON, **WINDOWED} for name in ("qwen2", "qwen3", "qwen3_moe", "smollm3")},
}


def resolved(given: dict[str, Any], path: Path) -> Any:
    path.write_text(json.dumps(given))
    return read_config(path)[1].resolved()


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_absent_settings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]
    whole = {**kind(**GIVEN.get(name, COMMON)).to_dict(), "model_type": name}
    resolved(whole, path)
    read = 0
    for key in whole.keys() - {"model_type"}:
        left = {n: value for n, value in whole.items() if n != key}
        for given in (left, {**left, key: None}):
            path.write_text(json.dumps(given))
            try:
                ours = resolved(given, path)
            except SettingError:
                continue
            try:
                theirs = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
            except Exception:  # it has no common error
                continue
            assert ours == resolved({**theirs, "model_type": name}, path), key
            read += 1
    assert read > 20


def test_one_base_is_missing_where_each_kind_of_layer_has_its_own(tmp_path: Path) -> None:
    kinds = {kind: {"rope_type": "default"} for kind in ("full_attention", "sliding_attention")}
    whole = transformers.Gemma3TextConfig(**COMMON).to_dict() | {"rope_parameters": kinds}
    config = resolved(whole, tmp_path / "config.json")
    assert {part.window: part.rope.base for part in config.attentions} == {4096: 1e4, None: 1e6}


def test_a_family_without_a_default_refuses_an_absent_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the setting rms_norm_eps is missing"):
        resolved({"model_type": "llama", **COMMON}, tmp_path / "config.json")
