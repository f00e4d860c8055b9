"""Every family both ways: the logits of transformers here, ours there, and through the cache."""

import json

import pytest
import torch
from family_models import COMMON, FAMILIES, logits_of, peer_of, saved
from safetensors.torch import load_file

from culm.adapt.lora import LoRA, LoRALinear
from culm.adapt.merge import merge
from culm.config import SettingError
from culm.convert import hf
from culm.engine.engine import Engine
from culm.engine.fused_support import uncomputed
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.context import Context
from culm.model.mlp.moe import MixtureOfExperts, MoE
from culm.safetensors import read_safetensors, write_safetensors

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def rows():
    return torch.randint(3, 300, (2, 50), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, tokenizer):
    """Name, their model, and ours as it was read."""
    peer = peer_of(request.param)
    folder = saved(peer, tokenizer, tmp_path_factory.mktemp("family"), "60KB")
    model, _ = hf.load(folder)
    return request.param, peer, model.eval(), folder


def test_theirs_is_read(family, rows):
    _, peer, model, _ = family
    found, expected = model(rows), logits_of(peer, rows)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 1e-4


def test_backends_agree(family, rows):
    _, peer, model, _ = family
    expected = logits_of(peer, rows)
    for backend in ("sdpa", "blocks"):
        model.set_backend(backend)
        assert (model(rows) - expected).abs().max() <= 1e-4
    model.set_backend("blocks")


def test_ours_is_read_there(family, rows, tokenizer, tmp_path):
    name, peer, model, _ = family
    kind = FAMILIES[name][0]
    hf.export(model, tokenizer, tmp_path / "out", family=kind)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(peer)
    own = peer.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    assert (logits_of(again, rows) - logits_of(peer, rows)).abs().max() <= 1e-4
    back, _ = hf.load(tmp_path / "out")
    assert back.config.resolved() == model.config.resolved()


def test_cached_decoding_follows_theirs(family, rows):
    """Prompts of unequal length in one batch, one longer than the windows."""
    _, peer, model, _ = family
    prompts = [rows[0, :40].tolist(), rows[1, :7].tolist(), rows[1, :23].tolist()]
    requests = [Request(tuple(prompt), 12, Sampling(temperature=0)) for prompt in prompts]
    for prompt, done in zip(prompts, Engine(model, 4, 64).generate(requests), strict=True):
        whole = torch.tensor([[*prompt, *done.tokens]])
        logprobs = logits_of(peer, whole).log_softmax(-1)[0, len(prompt) - 1 : -1]
        assert logprobs.argmax(-1).tolist() == list(done.tokens)
        found = torch.tensor(done.logprobs)
        assert (found - logprobs.amax(-1)).abs().max() <= 1e-4


def test_adapters_merge(family, rows):
    _, _, model, folder = family
    model, _ = hf.load(folder)
    assert LoRA(rank=2).apply(model, seed=0) > 0
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.b, std=0.05, generator=torch.Generator().manual_seed(1))
    adapted = model.eval()(rows)
    merge(model)
    assert (model(rows) - adapted).abs().max() <= 1e-4


def test_published_forms_are_read(tokenizer, rows, tmp_path):
    """GPT-2 without its root and with masks among its tensors; GPT-OSS with experts in MXFP4."""
    folder = saved(peer_of("GPT-2"), tokenizer, tmp_path / "gpt2")
    held = dict(read_safetensors(folder / "model.safetensors"))
    bare = {name.removeprefix("transformer."): tensor for name, tensor in held.items()}
    write_safetensors(folder / "model.safetensors", bare | {"h.0.attn.bias": torch.ones(1, 1)})
    found = hf.load(folder)[0].eval()(rows)
    assert (found - logits_of(peer_of("GPT-2"), rows)).abs().max() <= 1e-4

    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    peer = peer_of("GPT-OSS")
    folder = saved(peer, tokenizer, tmp_path / "oss")
    held, drawn = dict(read_safetensors(folder / "model.safetensors")), torch.Generator()
    for name in [name for name in held if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = held.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=drawn).to(torch.uint8)
        scales = torch.randint(122, 126, shape, generator=drawn).to(torch.uint8)
        held |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        peer.get_parameter(name).data.copy_(plain)
    write_safetensors(folder / "model.safetensors", held)
    path = folder / "config.json"
    packing = {"quantization_config": {"quant_method": "mxfp4"}, "initial_context_length": 32}
    path.write_text(json.dumps(json.loads(path.read_text()) | packing))
    model = hf.load(folder)[0].eval()
    assert (model(rows) - logits_of(peer, rows)).abs().max() <= 1e-4


def test_a_setting_of_another_time_is_refused(family):
    _, _, _, folder = family
    path = folder / "config.json"
    given = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(given), "a_new_part": 3}))
        with pytest.raises(SettingError, match=r"config\.json: a_new_part: 3 is not known here"):
            hf.load(folder)
    finally:
        path.write_text(given)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_another_activation_is_computed_or_refused(family, rows, tokenizer, tmp_path, activation):
    name, peer, _, folder = family
    settings = json.loads((folder / "config.json").read_text())
    known = ("hidden_activation", "activation_function", "hidden_act")
    setting = next(each for each in known if each in settings)
    kind = settings.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **{**settings, setting: activation})
    other = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    other.load_state_dict(peer.state_dict())
    saved(other.eval(), tokenizer, tmp_path / "in")
    plain = name in ("GPT-2", "Pythia")
    of_experts = name in ("Mixtral", "Qwen3-MoE", "DeepSeek-V3", "GPT-OSS")
    if of_experts or (activation == "relu" and not plain):
        with pytest.raises(SettingError, match=f"{setting}: '{activation}' is not read here"):
            hf.load(tmp_path / "in")
        return
    model, _ = hf.load(tmp_path / "in")
    expected = logits_of(other, rows)
    assert (model.eval()(rows) - expected).abs().max() <= 1e-4
    hf.export(model, tokenizer, tmp_path / "out", family=kind)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits_of(again, rows) - expected).abs().max() <= 1e-4


def test_a_needed_setting_that_is_missing_is_named(family):
    name, _, _, folder = family
    path = folder / "config.json"
    given = path.read_text()
    heads = "n_head" if name == "GPT-2" else "num_attention_heads"
    try:
        left = {key: value for key, value in json.loads(given).items() if key != heads}
        path.write_text(json.dumps(left))
        with pytest.raises(SettingError, match=rf"config\.json: the setting {heads} is missing"):
            hf.load(folder)
    finally:
        path.write_text(given)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE", "GPT-OSS"])
def test_balance_loss_is_theirs(name, rows, tokenizer, tmp_path):
    """Of one layer; theirs of several is one loss of all their tokens."""
    one = {"num_hidden_layers": 1, "router_aux_loss_coef": 0.05, "output_router_logits": True}
    if "Qwen" in name:
        one["mlp_only_layers"] = []
    if "OSS" in name:
        one["layer_types"] = ["full_attention"]
    kind, settings = FAMILIES[name]
    config = transformers.AutoConfig.for_model(kind, **{**COMMON, **settings, **one})
    torch.manual_seed(0)
    peer = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model, _ = hf.load(saved(peer, tokenizer, tmp_path / "theirs"))
    expected = 0.05 * peer(rows, output_router_logits=True).aux_loss
    context = Context(torch.arange(50).expand(2, 50), routings=[])
    model(rows, context)
    assert context.routings[0].loss.item() / 100 == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 0.05


def test_what_a_router_was_trained_with_does_not_hinder_its_export(tokenizer, tmp_path):
    """And its biases stay in fp32, in which they move."""
    read, _ = hf.load(saved(peer_of("DeepSeek-V3"), tokenizer, tmp_path / "theirs"))
    more = {"bias_rate": 0.001, "sequence_balance_loss": 0.1, "z_loss": 0.1, "capacity": 2.0}
    mlp = tuple(m.model_copy(update=more if isinstance(m, MoE) else {}) for m in read.config.mlp)
    model = read.config.model_copy(update={"mlp": mlp}).build(seed=0)
    router = next(b.mlp.router for b in model.blocks if isinstance(b.mlp, MixtureOfExperts))
    router.selection += 1.001
    hf.export(model, tokenizer, tmp_path / "out", torch.bfloat16)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    biases = {name: value for name, value in weights.items() if "correction_bias" in name}
    assert {value.dtype for value in biases.values()} == {torch.float32}
    assert all(v.dtype == torch.bfloat16 for name, v in weights.items() if name not in biases)
    assert any(torch.equal(value, router.selection) for value in biases.values())


FUSED = {
    "Llama 2", "Llama 3", "SmolLM2", "SmolLM3", "Mistral", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3",
    "OLMo 2", "OLMo 3", "Phi-3",
}  # fmt: skip


def test_the_fused_step_knows_the_settings_that_its_page_names(family):
    name, _, model, _ = family
    odd = list(uncomputed(model.config.resolved()))
    assert (not odd) == (name in FUSED), odd


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "intermediate_size", "head_dim"])
def test_sizes_that_no_tensor_can_have(tokenizer, tmp_path, name):
    folder = saved(peer_of("Llama 2"), tokenizer, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config[name] = 10**20
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=r"no model can have its sizes|vocabulary"):
        hf.load(folder)


@pytest.mark.parametrize("count", [10**7, 10**20])
@pytest.mark.parametrize("family", ["Mixtral", "DeepSeek-V3"])
def test_a_number_of_experts_that_no_model_has(tokenizer, tmp_path, family, count):
    folder = saved(peer_of(family), tokenizer, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config[next(name for name in config if name in ("num_local_experts", "n_routed_experts"))] = (
        count
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="experts: it should be less than or equal to 10000"):
        hf.load(folder)
