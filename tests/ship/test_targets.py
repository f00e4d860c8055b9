"""Folders for vLLM, Inferentia and Workers AI: each has what its target reads, or is refused."""

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patch_models import patch_model

from culm.config import SettingError
from culm.convert import hf, native
from culm.convert.export import export
from culm.lineage import read_lineage
from culm.safetensors import read_safetensors, write_safetensors
from culm.ship.export import export_for
from culm.ship.targets.cloudflare import BASES
from culm.ship.targets.vllm import commands
from culm.tokenizer.bytes import Bytes
from culm.verbs.export import export_model

NO_FAMILY = {"kind": "gqa", "heads": 4, "alibi": True, "rope": None}


def test_vllm(model_folder, tmp_path: Path) -> None:
    source = model_folder()
    out = export_for(str(source), tmp_path / "out", "vllm", "float32")
    ours, theirs = native.load(source)[0].state_dict(), hf.load(out)[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    page = (out / "README.md").read_text()
    for line in commands("out", 256, "float32", 1).values():
        assert f"```bash\n{line}\n```" in page
        words = shlex.split(line)
        assert words[words.index("--served-model-name") + 1] == "out"
        assert words[words.index("--dtype") + 1] == "float32"
        assert "256" in words
    made = read_lineage(out)
    assert made is not None
    assert made.command[3:] == ("--for", "vllm", "--dtype", "float32")


def test_vllm_with_tensor_parallel(model_folder, tmp_path: Path) -> None:
    source = str(model_folder())
    out = export_for(source, tmp_path / "out", {"kind": "vllm", "tensor_parallel": 2})
    assert "--tensor-parallel-size 2" in (out / "README.md").read_text()
    with pytest.raises(SettingError, match="tensor_parallel: 3 does not divide the 4 attention"):
        export_for(source, tmp_path / "more", {"kind": "vllm", "tensor_parallel": 3})


@pytest.mark.parametrize("target", ["vllm", "inferentia"])
def test_heads_of_keys_that_no_server_can_divide(target: str, model_folder, tmp_path: Path) -> None:
    attention = {"kind": "gqa", "heads": 12, "kv_heads": 4, "head_dim": 8}
    source = str(model_folder(attention=attention, name="keys"))
    with pytest.raises(SettingError, match="neither a divisor nor a multiple of the 4 heads"):
        export_for(source, tmp_path / "out", {"kind": target, "tensor_parallel": 6})
    export_for(source, tmp_path / "out", {"kind": target, "tensor_parallel": 4})
    export_for(source, tmp_path / "copies", {"kind": target, "tensor_parallel": 12})


def test_a_model_of_no_family_is_refused(model_folder, tmp_path: Path) -> None:
    source = model_folder(attention=NO_FAMILY)
    for target in ("vllm", "inferentia", "ollama"):
        with pytest.raises(SettingError):
            export_for(str(source), tmp_path / target, target)
        assert not (tmp_path / target).exists()


# -- Inferentia -----------------------------------------------------------------------------------

# What the script imports, with the signatures of optimum-neuron 0.4.5.
OPTIMUM = """
import json, sys

class Model:
    def save_pretrained(self, out):
        out.mkdir(parents=True)
    def generate(self, max_new_tokens, do_sample, **prompt):
        return prompt["input_ids"]

class NeuronModelForCausalLM:
    @classmethod
    def get_neuron_config(cls, model_name_or_path, config=None, token=None, revision=None,
                          instance_type=None, batch_size=None, sequence_length=None,
                          tensor_parallel_size=None):
        return {"path": model_name_or_path, "instance": instance_type, "batch": batch_size,
                "sequence": sequence_length, "cores": tensor_parallel_size}
    @classmethod
    def export(cls, model_id, neuron_config, config=None, token=None, revision=None,
               load_weights=False, **more):
        assert load_weights and not more
        print(json.dumps(neuron_config))
        return Model()
"""


def test_inferentia(model_folder, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    target = {"kind": "inferentia", "batch_size": 2, "sequence_length": 128}
    out = export_for(str(model_folder()), tmp_path / "out", target)
    package = tmp_path / "stub" / "optimum"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "neuron.py").write_text(OPTIMUM)
    path = os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "compile.py"], cwd=out, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config, texts = done.stdout.splitlines()
    assert json.loads(config) == {
        "path": str(out), "instance": "inf2", "batch": 2, "sequence": 128, "cores": 2,
    }  # fmt: skip
    assert ast.literal_eval(texts) == ["The", "The"]
    assert (out / "neuron" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        ({"sequence_length": 200}, {}, "sequence_length: 200 is no multiple of 128"),
        ({"sequence_length": 512}, {}, "no longer than the 256 tokens"),
        ({}, {"context": 100}, "no longer than the 100 tokens"),
        ({"tensor_parallel": 3}, {}, "tensor_parallel: 3 does not divide the 4 attention heads"),
        ({"tensor_parallel": 64}, {}, "64 is more than the 24 NeuronCores of the largest inf2"),
        ({"batch_size": 0}, {}, "batch_size"),
        ({}, {"attention": NO_FAMILY}, "compiles granite, .*, and this model is of no family"),
    ],
)
def test_what_inferentia_refuses(model_folder, tmp_path, settings, model, words) -> None:
    source = str(model_folder(**model))
    with pytest.raises(SettingError, match=words):
        export_for(source, tmp_path / "out", {"kind": "inferentia", **settings})
    assert not (tmp_path / "out").exists()


# -- Workers AI -----------------------------------------------------------------------------------

BASE = "mistralai/Mistral-7B-Instruct-v0.2"


def adapter(folder: Path, rank: int = 2, layer: int = 31, **settings: object) -> Path:
    """An adapter of two layers of Mistral, as PEFT writes it."""
    folder.mkdir(parents=True)
    name = f"base_model.model.model.layers.{layer}.self_attn"
    tensors = {
        f"{name}.q_proj.lora_A.weight": torch.ones(rank, 4096),
        f"{name}.q_proj.lora_B.weight": torch.ones(4096, rank),
        f"{name}.k_proj.lora_A.weight": torch.ones(rank, 4096),
        f"{name}.k_proj.lora_B.weight": torch.ones(1024, rank),
    }
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    about = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"],
        "base_model_name_or_path": BASE, **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_cloudflare(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run" / "adapter").parent
    out = export_for(str(run), tmp_path / "poet", "cloudflare", "float16")
    files = {file.name for file in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files
    about = json.loads((out / "adapter_config.json").read_text())
    assert about["model_type"] == "mistral"
    assert about["r"] == 2
    tensors = dict(read_safetensors(out / "adapter_model.safetensors"))
    assert len(tensors) == 4
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model = BASES["mistral-7b-instruct-v0.2"].model
    assert f"npx wrangler ai finetune create {model} poet poet" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("made", "target", "words"),
    [
        ({"rank": 64}, {}, "rank 64; Workers AI takes ranks up to 32"),
        ({"use_dora": True}, {}, "use_dora: Workers AI does not apply DoRA"),
        ({"use_rslora": True}, {}, "use_rslora"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"r": 4}, {}, "does not fit mistral-7b-instruct-v0.2 with rank 4"),
        ({"layer": 32}, {}, r"layers\.32.*has no such layer"),
        ({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}, {}, "'Qwen/Qwen3-0.6B' is not one of"),
        ({}, {"base": "llama-2-7b-chat-hf"}, r"k_proj.lora_B.* does not fit llama-2-7b-chat-hf"),
        ({}, {"base": "gpt2"}, "base"),
    ],
)
def test_what_cloudflare_refuses(tmp_path, made, target, words) -> None:
    source = adapter(tmp_path / "adapter", **made)
    with pytest.raises(SettingError, match=words):
        export_for(str(source), tmp_path / "out", {"kind": "cloudflare", **target})
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_too_large(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("culm.ship.targets.cloudflare.MEGABYTES", 0.1)
    source = str(adapter(tmp_path / "adapter"))
    with pytest.raises(SettingError, match="Workers AI takes less than"):
        export_for(source, tmp_path / "out", "cloudflare")
    export_for(source, tmp_path / "out", "cloudflare", "float16")


def test_cloudflare_takes_no_models(model_folder, tmp_path) -> None:
    with pytest.raises(SettingError, match="Workers AI takes no models, only LoRA adapters"):
        export_for(str(model_folder()), tmp_path / "out", "cloudflare")


def test_an_option_without_effect_is_refused(tmp_path) -> None:
    with pytest.raises(SettingError, match="--family: 'llama' has no effect with --for cloudflare"):
        export_for(str(adapter(tmp_path / "a")), tmp_path / "out", "cloudflare", family="llama")


@pytest.mark.parametrize("kind", ["megabyte", "blt"])
@pytest.mark.parametrize("target", ["ollama", "vllm", "inferentia"])
def test_a_model_of_bytes_is_refused(kind: str, target: str, tmp_path: Path) -> None:
    """Only Culm computes it; `--for lambda` takes it."""
    words = Bytes(specials=True).build()
    native.save(patch_model(kind), words, tmp_path / "bytes")
    with pytest.raises(SettingError):
        export_for(str(tmp_path / "bytes"), tmp_path / "out", target)
    assert not (tmp_path / "out").exists()
    export_for(str(tmp_path / "bytes"), tmp_path / "image", "lambda")


@pytest.mark.parametrize("target", ["ollama", "vllm", "lambda"])
def test_a_hugging_face_folder_is_a_source(target: str, model_folder, tmp_path: Path) -> None:
    folder = export(model_folder(), tmp_path / "hf", "float32")
    out = export_for(str(folder), tmp_path / "out", target)
    assert (out / "README.md").is_file()


def test_a_folder_of_any_name(tmp_path: Path) -> None:
    source = str(adapter(tmp_path / "adapter"))
    text = (export_for(source, tmp_path / 'my "poet"', "cloudflare") / "README.md").read_text()
    assert """-lora 'my "poet"' 'my "poet"'""" in text
    assert r'lora: "my \"poet\""' in text


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch) -> None:
    source = str(adapter(tmp_path / "adapter"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in (False, True):
        with pytest.raises(SettingError, match="the current folder"):
            export_model(source, ".", "cloudflare", "", "", overwrite)


def test_an_adapter_without_layers_is_refused(tmp_path: Path) -> None:
    source = adapter(tmp_path / "adapter")
    write_safetensors(source / "adapter_model.safetensors", {})
    with pytest.raises(SettingError, match="has no layers"):
        export_for(str(source), tmp_path / "out", "cloudflare")


@pytest.mark.parametrize("target", [None, 5, ["ollama"]])
def test_no_target(target: object, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--for: expected a name such as ollama"):
        export_for(str(tmp_path), tmp_path / "out", target)
