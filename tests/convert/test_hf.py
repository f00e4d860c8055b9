"""Both ways to transformers: the same logits, and nothing read that is not understood."""

import json

import pytest
import torch

from culm.adapt.quantize.int8 import Int8
from culm.config import SettingError
from culm.convert import hf
from culm.safetensors import read_safetensors

transformers = pytest.importorskip("transformers")

LLAMA = {"kind": "gqa", "heads": 4, "kv_heads": 2}
# Of contexts so short that the scaling shows within the few tokens of a test.
LLAMA3 = {"kind": "llama3", "factor": 8, "low": 1, "high": 4, "original": 32}
YARN = {"kind": "yarn", "factor": 4, "original": 16}
NORM = {"kind": "rms", "eps": 1e-6}
LINEAR = {"kind": "linear", "factor": 2}
SHAPES = {
    "llama": {"attention": LLAMA, "tied": True},
    "llama-untied-wide-heads": {"attention": {**LLAMA, "head_dim": 24}, "tied": False},
    "llama-rope": {
        "attention": {**LLAMA, "rope": {"base": 500_000}},
        "norm": {"kind": "rms", "eps": 1e-6},
    },
    "llama-3": {"attention": {**LLAMA, "rope": {"base": 5e5, "scaling": LLAMA3}}, "tied": True},
    "llama-yarn": {"attention": {**LLAMA, "rope": {"scaling": YARN}}, "tied": True},
    "llama-linear": {"attention": {**LLAMA, "rope": {"scaling": LINEAR}}, "tied": True},
    "qwen2": {"attention": {**LLAMA, "bias": True}, "tied": False},
    "qwen3": {"attention": {**LLAMA, "qk_norm": "head", "head_dim": 32}, "tied": True},
}
COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 16,
}
THEIRS = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}


def difference(model, peer, tokens):
    with torch.no_grad():
        return (model(tokens) - peer(tokens).logits).abs().max().item()


@pytest.mark.parametrize("name", SHAPES)
def test_our_export_loads_there(tiny, tokenizer, tokens, tmp_path, name):
    model = tiny(**SHAPES[name])
    hf.export(model, tokenizer, tmp_path / "out")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert difference(model, peer, tokens) <= 1e-4
    assert type(peer).__name__.lower().startswith(name.split("-")[0])
    assert peer.config.tie_word_embeddings == model.config.tied
    again, its_tokenizer = hf.load(tmp_path / "out")
    assert again.config.resolved() == model.config.resolved()
    assert torch.equal(again(tokens), model(tokens))
    assert its_tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shards", ["5GB", "50KB"])
def test_theirs_loads_here(tokenizer, tokens, tmp_path, name, shards):
    kind, settings = THEIRS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **settings})
    peer = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    peer.save_pretrained(tmp_path, max_shard_size=shards)
    tokenizer.save(tmp_path)
    model, _ = hf.load(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shards == "50KB"
    assert difference(model, peer, tokens) <= 1e-4


def test_greedy_generation_there_equals_ours(tiny, tokenizer, tmp_path):
    model = tiny(**SHAPES["qwen3"])
    hf.export(model, tokenizer, tmp_path / "out")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    names = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = names("Once upon a time", return_tensors="pt").input_ids
    assert prompt[0].tolist() == tokenizer.encode("Once upon a time")
    assert set(peer.generation_config.eos_token_id) == set(tokenizer.stop_ids)
    theirs = peer.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    ours = prompt
    with torch.no_grad():
        while ours.shape[1] < len(theirs):
            ours = torch.cat((ours, model(ours)[:, -1:].argmax(-1)), 1)
    assert ours[0].tolist() == theirs
    messages = [{"role": "user", "content": "Hello"}]
    chat = names.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat == "<|user|>Hello<|end|><|assistant|>"


def test_shards(tiny, tokenizer, tokens, tmp_path):
    model = tiny(tied=False)
    hf.export(model, tokenizer, tmp_path / "out", shard_bytes=60_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    assert torch.equal(hf.load(tmp_path / "out")[0](tokens), model(tokens))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert difference(model, peer, tokens) <= 1e-4


def test_bf16_export(tiny, tokenizer, tokens, tmp_path):
    hf.export(tiny(), tokenizer, tmp_path / "out", torch.bfloat16)
    model, _ = hf.load(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model(tokens) - tiny()(tokens)).abs().max() < 0.1


def test_quantized_layers_are_dequantised(tiny, tokenizer, tokens, tmp_path):
    model = tiny(tied=True)
    Int8().apply(model)
    hf.export(model, tokenizer, tmp_path / "out")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert difference(model, peer, tokens) <= 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": [LLAMA, {**LLAMA, "kv_heads": 4}]}, r"model\.attention\[1\]\.kv_heads"),
        ({"mlp": [{"hidden": 96}, {"hidden": 64}]}, r"model\.mlp\[1\]\.hidden"),
        (
            {"attention": {**LLAMA, "softcap": 8}},
            r"model\.attention\.softcap: no Hugging",
        ),
        (
            {"attention": {**LLAMA, "bias": True, "qk_norm": "head"}},
            r"model\.attention\.(bias|qk_norm)",
        ),
    ],
)
def test_what_no_family_expresses_is_refused(tiny, tokenizer, tmp_path, settings, message):
    mlp = [{"kind": "swiglu", **m} for m in settings.pop("mlp", [{"hidden": 96}])]
    with pytest.raises(SettingError, match=message):
        hf.export(tiny(mlp=mlp, **settings), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exported(tiny, tokenizer, tmp_path):
    hf.export(tiny(), tokenizer, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "query_pre_attn_scalar is missing"),
        ({"model_type": "gemma"}, "model_type 'gemma' is not one of llama, qwen2"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "mscale": 1}}, "mscale are not"),
        ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "factor are not known"),
        ({"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2}}, "'su'"),
        ({"rope_parameters": 3}, "rope_parameters: 3 is not a mapping"),
        ({"sliding_window": 4096}, "sliding_window: 4096 is not known here"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0 is not known here"),
        ({"attention_bias": True}, r"8 are missing: blocks\.#\.attention\.k\.bias \(2\)"),
        ({"mlp_bias": True}, "mlp_bias: True"),
        ({"hidden_act": "mish"}, "hidden_act: 'mish'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"layer_types": 3}, "layer_types"),
        ({"vocab_size": "many"}, r"config\.json\.vocabulary"),
        ({"num_key_value_heads": 3}, r"config\.json\.attention\S*\.kv_heads: 3 does not divide"),
        ({"hidden_size": 128}, r"tensor \S+ has shape \(.*64.*\), its settings say \("),
        ({"num_hidden_layers": 3}, "9 are missing"),
        ({"vocab_size": 256}, "the tokenizer has 300 ids, the model's vocabulary only 256"),
    ],
)
def test_settings_that_are_not_understood(exported, changes, message):
    path = exported / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SettingError, match=message):
        hf.load(exported)


def test_missing_setting_and_shard(exported):
    path = exported / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "rms_norm_eps"}))
    with pytest.raises(SettingError, match="the setting rms_norm_eps is missing"):
        hf.load(exported)
    path.write_text(json.dumps(config))
    (exported / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SettingError, match=r"out/secret\.safetensors: there is no such file"):
        hf.load(exported)


class Code:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize("sharded", [False, True])
def test_an_older_file_of_tensors(exported, tokens, sharded, capsys):
    expected = hf.load(exported)[0](tokens)
    held = dict(read_safetensors(exported / "model.safetensors"))
    (exported / "model.safetensors").unlink()
    parts = {"pytorch_model.bin": held}
    if sharded:
        names = sorted(held)
        parts = {"a.bin": {n: held[n] for n in names[:5]}, "b.bin": {n: held[n] for n in names[5:]}}
        places = {name: file for file, part in parts.items() for name in part}
        index = json.dumps({"weight_map": places})
        (exported / "pytorch_model.bin.index.json").write_text(index)
    for file, part in parts.items():
        torch.save(part, exported / file)
    assert torch.equal(hf.load(exported)[0](tokens), expected)
    file = exported / next(iter(parts))
    for broken in ({"a": Code()}, [1, 2]):
        torch.save(broken, file)
        with pytest.raises(SettingError, match=r"\.bin: (broken, or more|it holds something)"):
            hf.load(exported)
    file.write_bytes(b"nothing")
    with pytest.raises(SettingError, match=r"\.bin: broken"):
        hf.load(exported)
    assert "it ran" not in capsys.readouterr().out


def test_truncated_shard(exported):
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SettingError, match=r"model\.safetensors: broken or no safetensors file"):
        hf.load(exported)
