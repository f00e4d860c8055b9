"""A server samples for two ranks: each asks for its share, and the writer alone exports."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from test_ranks import assert_same, on_two_ranks
from vllm_stub import VLLM

from culm.convert import hf
from culm.convert.load import read
from culm.model.transformer import Transformer
from culm.run.settings import read_run
from culm.run.train import train


@pytest.mark.slow
def test_two_ranks_sample_as_one(
    run_file: Callable[..., Path], tmp_path: Path, serving: Callable[[Transformer], VLLM]
) -> None:
    """Replicated and sharded, with adapters too; as the engine does it on one rank."""
    folder = tmp_path / "served"
    files = [run_file("grpo", adapter=adapter, steps=3) for adapter in (False, True)]
    model, tokenizer = read(yaml.safe_load(files[0].read_text())["start"], "cpu", torch.float32)
    hf.export(model, tokenizer, folder)
    server = serving(model)

    def reload(path: str, body: dict) -> dict:
        server.model.load_state_dict(read(folder, "cpu", torch.float32)[0].state_dict())
        return {}

    server.on_post = reload
    sampler = {
        "kind": "remote", "url": server.url, "model": "policy", "weights": str(folder),
        "reload": [{"path": "/collective_rpc", "body": {"method": "reload_weights"}}],
    }  # fmt: skip
    runs = []
    for file in files:
        settings = yaml.safe_load(file.read_text())
        settings["train"]["rollout"]["sampler"] = sampler
        asking = file.with_suffix(".remote.yaml")
        asking.write_text(yaml.safe_dump(settings))
        runs += [f"{asking},parallel={kind},folder={file}-{kind}" for kind in ("ddp", "fsdp")]
    on_two_ranks(*runs)
    assert len(server.posted) == 4 * 3
    for file in files:
        config, _ = read_run(str(file))
        train(config)
        for kind in ("ddp", "fsdp"):
            assert_same(Path(config.folder), Path(f"{file}-{kind}"))
