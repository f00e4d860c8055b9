"""Settings as they were published, in the forms of their time, shrunk: transformers and we read
the same model from them."""

import json
from pathlib import Path

import pytest
import torch
from family_models import logits_of, strong

from culm.convert import hf

transformers = pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_read_as_transformers_reads_it(name, tokenizer, tmp_path):
    given = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.dtype = torch.float32
    peer = strong(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    )
    peer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(given))
    tokenizer.save(tmp_path)
    model, _ = hf.load(tmp_path)
    rows = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    assert not any(mlp.kind == "moe" and mlp.balance_loss for mlp in model.config.mlp)
    assert (model.eval()(rows) - logits_of(peer, rows)).abs().max() <= 1e-4
