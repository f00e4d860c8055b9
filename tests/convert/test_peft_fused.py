"""Adapters of layers that are one matrix there and several here: PEFT's logits are ours."""

import json

import pytest
import torch
from family_models import logits_of, peer_of, saved

from culm.adapt.lora import LoRA, LoRALinear, adapters_of
from culm.adapt.merge import merge
from culm.adapt.multi_lora import adapter_names
from culm.config import SettingError
from culm.convert import peft as ours
from culm.convert.load import load_model, read
from culm.safetensors import read_safetensors, write_safetensors

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CASES = {
    "Phi-3": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
    "Pythia": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "GPT-2": ["c_attn", "c_proj", "c_fc"],
    "DeepSeek-V3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "Llama 2": ["q_proj", "k_proj", "up_proj"],
}
KINDS = {
    "plain": {"r": 4, "lora_alpha": 6},
    "dora": {"r": 3, "use_dora": True},
    "rslora": {"r": 4, "use_rslora": True},
}
WHOLE = {"Phi-3": "gate_up_proj", "Pythia": "query_key_value", "GPT-2": "c_fc"}


@pytest.fixture(scope="module")
def rows():
    return torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=CASES)
def based(request, tokenizer, tmp_path_factory):
    """A name and the folder of its model."""
    folder = tmp_path_factory.mktemp("base")
    return request.param, saved(peer_of(request.param), tokenizer, folder)


def adapted(folder, out, **settings):
    """PEFT's model of which every trained number was moved; its adapter is in `out`."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base, config).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_theirs_is_read_here(based, rows, tmp_path, kind):
    name, folder = based
    targets, settings = CASES[name], {"lora_alpha": 8, **KINDS[kind]}
    peer = adapted(folder, tmp_path / "adapter", target_modules=targets, **settings)
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    base = model(rows)
    ours.load(model, tmp_path / "adapter")
    expected = logits_of(peer, rows)
    assert (base - expected).abs().max() > 0.1
    assert (model(rows) - expected).abs().max() <= 1e-4
    merge(model)
    assert (model(rows) - expected).abs().max() <= 1e-4
    if kind == "plain" and name != "DeepSeek-V3":  # whose keys are absorbed while decoding
        served, _ = read(folder, "cpu", adapters={"one": tmp_path / "adapter"})
        assert adapter_names(served) == ("one",)


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_and_rank_of_single_layers(based, rows, tmp_path, rslora):
    name, folder = based
    first, second, *_ = CASES[name]
    peer = adapted(
        folder, tmp_path / "adapter", target_modules=[first, second], r=4, lora_alpha=8,
        use_rslora=rslora,
        rank_pattern={first: 2}, alpha_pattern={rf".*\.1\..*{first}": 32, second: 1},
    )  # fmt: skip
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    ours.load(model, tmp_path / "adapter")
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4
    assert len({layer.scale for layer in adapters_of(model).values()}) == 3


def test_modules_that_were_trained_in_full(based, rows, tmp_path):
    name, folder = based
    if name not in WHOLE:
        pytest.skip("its layers are tested elsewhere")
    target = next(target for target in CASES[name] if target != WHOLE[name])
    peer = adapted(
        folder, tmp_path / "adapter", target_modules=[target], modules_to_save=[WHOLE[name]]
    )
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    ours.load(model, tmp_path / "adapter")
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4


OURS = {
    "plain": LoRA(rank=3, alpha=5),
    "dora": LoRA(rank=3, dora=True),
    "rslora": LoRA(rank=4, rslora=True),
    "parts": LoRA(rank=2, targets="blocks.*.attention.{q,kv_down}"),
    "a part of one layer": LoRA(rank=2, targets=("blocks.1.attention.v", "blocks.0.mlp.*")),
    "a part with dora": LoRA(rank=2, dora=True, targets=("blocks.1.attention.v", "blocks.0.*")),
}


def written(folder, lora, out):
    """A model with moved adapters, which are in `out`."""
    model = load_model(folder)[0].eval()
    lora.apply(model, seed=0)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    ours.save(model, lora, out, str(folder))
    return model


@pytest.mark.parametrize("kind", OURS)
def test_ours_is_read_there_and_here(based, rows, tmp_path, kind, capsys):
    name, folder = based
    if name == "DeepSeek-V3" and "v" in str(OURS[kind].targets):
        pytest.skip("it has layers of other names")
    model = written(folder, OURS[kind], tmp_path / "adapter")
    again = load_model(folder)[0].eval()
    ours.load(again, tmp_path / "adapter")
    assert (model(rows) - again(rows)).abs().max() <= 1e-4
    said = "PEFT takes adapters of feed-forward layers for those of the experts next to them"
    if said in capsys.readouterr().err:
        assert name == "DeepSeek-V3"
        lora = OURS[kind].model_copy(update={"targets": ("blocks.*.attention.*",)})
        model = written(folder, lora, tmp_path / "other")
        (tmp_path / "adapter").rename(tmp_path / "first")
        (tmp_path / "other").rename(tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4


def test_an_adapter_that_was_read_is_written_with_its_rank(based, tmp_path):
    name, folder = based
    targets = CASES[name]
    adapted(folder, tmp_path / "adapter", target_modules=targets, r=4, lora_alpha=8)
    model = load_model(folder)[0]
    ours.load(model, tmp_path / "adapter")
    ours.save(model, LoRA(rank=4, alpha=8), tmp_path / "again", str(folder))
    settings = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({}, {})
    one, two = (
        dict(read_safetensors(tmp_path / part / "adapter_model.safetensors"))
        for part in ("adapter", "again")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_part_that_is_trained_in_full_takes_the_others_along(tokenizer, rows, tmp_path):
    folder = saved(peer_of("Phi-3"), tokenizer, tmp_path / "base")
    lora = LoRA(targets="blocks.*.mlp.*", train_also=("blocks.0.attention.q",))
    model = written(folder, lora, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4
    again = load_model(folder)[0]
    ours.load(again, tmp_path / "adapter")
    assert (model(rows) - again(rows)).abs().max() <= 1e-4
    mixed = LoRA(targets="blocks.*.attention.k", train_also=("blocks.0.attention.q",))
    with pytest.raises(SettingError, match=r"attention.k is a part of .*qkv_proj .*; train all"):
        written(folder, mixed, tmp_path / "other")


def test_ours_of_transposed_matrices_is_read_there(tokenizer, rows, tmp_path):
    folder = saved(peer_of("GPT-2"), tokenizer, tmp_path / "base")
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    lora = LoRA(targets="blocks.*.attention.out", train_also=("blocks.0.mlp.up",))
    lora.apply(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ours.save(model, lora, tmp_path / "adapter", str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4


def test_a_fused_layer_of_another_shape_is_refused(tokenizer, tmp_path):
    folder = saved(peer_of("Phi-3"), tokenizer, tmp_path / "base")
    adapted(folder, tmp_path / "adapter", target_modules=["qkv_proj"], r=2)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    held = dict(read_safetensors(path))
    key = next(key for key in held if "lora_B" in key)
    write_safetensors(path, held | {key: held[key][:-3].clone()})
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    with pytest.raises(SettingError, match=r"an adapter for another base: b of .*qkv_proj has the"):
        ours.load(model, tmp_path / "adapter")
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


@pytest.mark.parametrize("module", ["mlp.experts.1.gate_proj", "mlp.experts"])
def test_adapters_of_experts_are_refused_with_a_remedy(tokenizer, tmp_path, module):
    folder = saved(peer_of("Qwen3-MoE"), tokenizer, tmp_path / "base")
    adapted(folder, tmp_path / "adapter", target_modules=["q_proj"], r=2)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    key = f"base_model.model.model.layers.0.{module}.lora_A.weight"
    write_safetensors(path, dict(read_safetensors(path)) | {key: torch.ones(2, 64)})
    model = load_model(folder)[0].eval()  # GPT-2 has dropout
    with pytest.raises(SettingError, match=r"adapters of .*experts.* are not read here; merge it"):
        ours.load(model, tmp_path / "adapter")


def test_a_switch_that_peft_corrects_is_read_alike(tokenizer, rows, tmp_path):
    """`fan_in_fan_out` says how the base is stored, and PEFT takes that from the base."""
    folder = saved(peer_of("Llama 2"), tokenizer, tmp_path / "base")
    adapted(folder, tmp_path / "adapter", target_modules=["q_proj"], r=2)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": True}))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    model = load_model(folder)[0]
    ours.load(model, tmp_path / "adapter")
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4
