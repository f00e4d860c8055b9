"""Adapters that train the ends of a tied model survive every conversion, as untied models."""

import json

import pytest
import torch
from family_models import logits_of, peer_of, saved

from culm.convert.export import export
from culm.verbs.import_model import import_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("trained", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_merged_and_exported(tokenizer, tmp_path, trained):
    folder = saved(peer_of("SmolLM2"), tokenizer, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert base.config.tie_word_embeddings
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=trained, r=4
    )
    peer = peft.get_peft_model(base, config).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    peer.save_pretrained(tmp_path / "adapter")
    import_model(tmp_path / "adapter", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "there", "float32")
    settings = json.loads((tmp_path / "there" / "config.json").read_text())
    assert settings["tie_word_embeddings"] is False
    rows = torch.randint(3, 300, (2, 20), generator=random)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "there", dtype=torch.float32
    )
    assert (logits_of(again, rows) - logits_of(peer, rows)).abs().max() <= 1e-4
