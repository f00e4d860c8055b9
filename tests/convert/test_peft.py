"""Adapter folders both ways: PEFT's logits are ours, and an adapter of another base is refused."""

import contextlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.merge import merge
from culm.adapt.quantize.int4 import Int4
from culm.config import SettingError
from culm.convert import hf, native
from culm.convert import peft as ours
from culm.convert.load import load_adapter, load_model, read
from culm.convert.peft.settings import written as written_settings
from culm.verbs.import_model import import_model

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2}
SHAPES = {
    "llama": {"attention": GQA, "tied": True},
    "qwen2": {"attention": {**GQA, "bias": True}, "tied": False},
    "qwen3": {"attention": {**GQA, "qk_norm": "head", "head_dim": 32}, "tied": True},
}
OURS = {
    "all": {},
    "rslora": {"rslora": True, "rank": 5, "alpha": 7.5},
    "dora": {"dora": True},
    "one layer": {"targets": ["blocks.*.attention.{q,v}", "blocks.1.mlp.up"]},
    "head": {"targets": ["blocks.0.*", "head"], "dora": True},
    "train_also": {"train_also": ["embed", "norm", "blocks.1.mlp_norm"]},
}
THEIRS = {
    "all": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 4},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": None},
    "layer": {"target_modules": ["up_proj"], "layers_to_transform": [1]},
    "ranks": {"target_modules": ["up_proj", "k_proj"], "rank_pattern": {"k_proj": 3}},
    "whole": {"target_modules": ["up_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embed": {"target_modules": ["up_proj"], "modules_to_save": ["embed_tokens"]},
    "tied": {
        "target_modules": ["up_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@pytest.fixture
def based(tiny, tokenizer, tmp_path):
    """A model, and its folders in our format and in theirs."""

    def make(name="llama"):
        model = tiny(**SHAPES[name])
        hf.export(model, tokenizer, tmp_path / "hf")
        native.save(model, tokenizer, tmp_path / "base")
        return model

    return make


def stirred(parameters, seed=3):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=random)
            parameter.add_(0.1 * parameter.abs().mean().clamp_min(0.3) * noise)


def adapted(model, **settings):
    """The model with adapters of which every number was moved, and their settings."""
    lora = LoRA(**settings)
    lora.apply(model, seed=0)
    stirred(p for p in model.parameters() if p.requires_grad)
    return model, lora


def difference(ours, theirs, tokens):
    with torch.no_grad():
        return (ours(tokens) - theirs(tokens).logits).abs().max().item()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", OURS)
def test_ours_is_read_there_and_here(based, tokens, tmp_path, name, kind):
    model, lora = adapted(based(name), **OURS[kind])
    ours.save(model, lora, tmp_path / "adapter", "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert difference(model, peer, tokens) <= 1e-5
    for folder in ("base", "hf"):
        again, _ = load_model(tmp_path / folder)
        assert ours.load(again, tmp_path / "adapter") == len(adapters_of(model))
        assert torch.equal(again(tokens), model(tokens))
        assert again.config.tied == model.config.tied


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", THEIRS)
def test_theirs_is_read_here(based, tokens, tmp_path, name, kind):
    if kind == "tied" and not SHAPES[name]["tied"]:
        pytest.skip("PEFT refuses it")
    model = based(name)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "lora_alpha": 16, **THEIRS[kind]})
    peer = peft.get_peft_model(base, config).eval()
    stirred(p for p in peer.parameters() if p.requires_grad)
    peer.save_pretrained(tmp_path / "adapter")
    ours.load(model, tmp_path / "adapter")
    assert difference(model, peer, tokens) <= 1e-5
    learned = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert learned <= {"a", "b", "magnitude"} or "modules_to_save" in THEIRS[kind]
    merge(model)
    assert difference(model, peer, tokens) <= 1e-5


@pytest.fixture
def written(based, tmp_path):
    """An adapter folder with the base that it names."""
    model, lora = adapted(based(), targets="blocks.*.mlp.*", rank=4)
    ours.save(model, lora, tmp_path / "adapter", str(tmp_path / "base"))
    return tmp_path / "adapter"


def change(folder, settings=(), tensors=()):
    """Other settings and tensors in an adapter folder; None takes a tensor away."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **dict(settings)}))
    held = load_file(folder / "adapter_model.safetensors") | dict(tensors)
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "adapter_model.safetensors")


def test_the_folder_says_what_peft_reads(written, tmp_path):
    settings = json.loads((written / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert (settings["r"], settings["lora_alpha"]) == (4, 16)
    names = load_file(written / "adapter_model.safetensors")
    up = "base_model.model.model.layers.1.mlp.up_proj"
    assert names[f"{up}.lora_A.weight"].shape == (4, 64)
    assert names[f"{up}.lora_B.weight"].shape == (96, 4)
    assert len(names) == 12
    assert peft.LoraConfig.from_pretrained(written).target_modules == set(
        settings["target_modules"]
    )


def test_a_folder_is_read_as_its_base_with_the_adapter_merged(written, tmp_path, tokens):
    beside, _ = read(tmp_path / "base", "cpu", adapter=written)
    merged, _ = read(written, "cpu")
    assert adapters_of(beside)
    assert not adapters_of(merged)
    assert (merged(tokens) - beside(tokens)).abs().max() < 1e-5
    import_model(written, tmp_path / "whole")
    again, _ = load_model(tmp_path / "whole")
    assert torch.equal(again(tokens), merged(tokens))


def test_a_tokenizer_of_an_adapter_keeps_the_ends_of_the_base(based, tokenizer, tmp_path):
    """As PEFT saves it: with a template, and without generation settings."""
    model, lora = adapted(based(), targets="blocks.0.mlp.up", rank=2)
    ours.save(model, lora, tmp_path / "adapter", str(tmp_path / "hf"))
    path = tmp_path / "hf" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0, 7], "temperature": 0.3}))
    names = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    names.chat_template = "{{ messages[0].content }}"
    for key in ("stop_ids", "end_of_text_id"):
        names.init_kwargs.pop(key)
    names.save_pretrained(tmp_path / "adapter")
    found = read(tmp_path / "adapter", "cpu")[1]
    assert found.template == names.chat_template
    assert found.stop_ids == {0, 7}
    assert found.generation["temperature"] == 0.3


def test_the_version_of_a_base_on_the_hub(written, tmp_path, tokens, monkeypatch):
    asked = []

    def found(name, **options):
        asked.append((name, options["revision"]))
        return str(tmp_path / "base")

    monkeypatch.setattr("culm.convert.load.snapshot_download", found)
    expected = read(written, "cpu")[0](tokens)
    change(written, {"base_model_name_or_path": "some/model", "revision": "v2"})
    assert torch.equal(read(written, "cpu")[0](tokens), expected)
    change(written, {"revision": None})
    assert torch.equal(read(written, "cpu")[0](tokens), expected)
    assert asked == [("some/model", "v2"), ("some/model", None)]
    change(written, {"base_model_name_or_path": str(tmp_path / "base"), "revision": "v2"})
    assert torch.equal(read(written, "cpu")[0](tokens), expected)  # a folder has no versions
    change(written, {"revision": 3})
    with pytest.raises(SettingError, match="revision: 3 is not the name of a version"):
        read(written, "cpu")


def test_an_adapter_of_the_run_that_trained_it(written, tmp_path, tokens):
    (tmp_path / "run").mkdir()
    written.rename(tmp_path / "run" / "adapter")
    model, _ = load_model(tmp_path / "base")
    assert load_adapter(model, tmp_path / "run") == 6


def test_the_base_may_be_rounded_or_packed_alike(based, tokenizer, tokens, tmp_path):
    """In bf16, in fp32 again, quantised, and dequantised."""
    model = based()
    native.save(model.to(torch.bfloat16), tokenizer, tmp_path / "bf16")
    Int4(group=32).apply(model)
    native.save(model, tokenizer, tmp_path / "int4")
    hf.export(model, tokenizer, tmp_path / "int4-hf")
    for start, used in (("base", "bf16"), ("bf16", "base"), ("int4", "int4"), ("int4", "int4-hf")):
        trained, _ = read(tmp_path / start, "cpu", torch.float32)
        trained, lora = adapted(trained, rank=2)
        ours.save(trained, lora, tmp_path / "adapter", None)
        model, _ = load_model(tmp_path / used)
        ours.load(model, tmp_path / "adapter")
        rounded = "bf16" in (start, used)
        assert (model(tokens) - trained(tokens)).abs().max() < (0.2 if rounded else 1e-4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layers": 1}, "this model has no blocks.1.mlp"),
        ({"width": 32}, r". of blocks.0.mlp.\w+ has the shape \(\d+, \d+\), here"),
        ({"vocabulary": 350}, "its base had other weights"),
        ({"seed": 2}, "its base had other weights"),
        ({"attention": {**GQA, "qk_norm": "head"}}, "its base had other weights"),
    ],
)
def test_an_adapter_of_another_base_is_refused(written, tiny, tokens, settings, reason):
    other = tiny(**{"tied": True, **{k: v for k, v in settings.items() if k != "seed"}})
    if "seed" in settings:
        stirred([other.blocks[0].attention_norm.weight])
    before = other(tokens)
    with pytest.raises(SettingError, match=f"an adapter for another base: {reason}"):
        ours.load(other, written)
    assert torch.equal(other(tokens), before)
    assert all(p.requires_grad for p in other.parameters())


UP = "base_model.model.model.layers.1.mlp.up_proj"
EMBED = "base_model.model.model.embed_tokens"


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type: 'IA3' is not read here, only 'LORA'"),
        ({"bias": "all"}, {}, "bias: 'all' is not read here, only 'none'"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights: 'pissa' is not read here"),
        ({"alpha_pattern": {"q": -4}}, {}, "alpha_pattern: .* is not read here: .*alpha"),
        ({"alpha_pattern": {"q(": 4}}, {}, "alpha_pattern: .* is not read here: .*"),
        ({"alpha_pattern": ["q"]}, {}, "alpha_pattern: .* is not read here: .*"),
        ({"new_thing": 3}, {}, "new_thing: 3 is not known here"),
        ({"r": "many"}, {}, r"adapter_config.json\.rank: "),
        ({"lora_alpha": -1}, {}, r"adapter_config.json\.alpha: "),
        ({"r": 8}, {}, r"blocks\.0\.mlp\.\w+ has rank 4, its settings say 8"),
        ({"use_dora": True}, {}, "magnitude of blocks.0.mlp.* is missing"),
        ({}, {f"{UP}.lora_B.weight": None}, "b of blocks.1.mlp.up is missing"),
        ({}, {f"{UP}.lora_magnitude_vector": torch.ones(96)}, "use_dora is not set"),
        ({}, {f"{UP}.lora_A.weight": torch.full((4, 64), torch.nan)}, "contains NaN or infinity"),
        ({}, {f"{UP}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}, "holds int8, and"),
        ({}, {f"{UP}.lora_A.weight": torch.tensor(1.0)}, "has rank 0"),
        ({"r": 1 << 50}, {f"{UP}.lora_A.weight": torch.ones(1 << 50, 0)},
         "its settings say 1125899906842624"),
        ({"rank_pattern": {"up_proj": 1 << 50}}, {f"{UP}.lora_A.weight": torch.ones(1 << 50, 0)},
         r"has the shape \(1125899906842624, 0\), here it is"),
        ({}, {f"{UP}.lora_B.weight": torch.ones(95, 4)}, r"has the shape \(95, 4\)"),
        ({}, {f"{UP}.lora_B.bias": torch.ones(96)}, "this kind of adapter is not read here"),
        ({}, {f"{EMBED}.lora_embedding_A": torch.ones(4, 320)}, "kind of adapter is not read here"),
        ({}, {f"{EMBED}.weight": torch.ones(10, 64)}, "weight of embed has the shape"),
        ({}, {f"{UP}.weight": torch.ones(96, 64)}, "blocks.1.mlp.up is trained in full, but it"),
        ({}, {f"{UP}.base_layer.weight": torch.ones(96, 64)}, "its base had other weights in"),
        ({}, {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 4)},
         "is not in a model of this family"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_refused(written, tmp_path, tokens, settings, tensors, message):
    change(written, settings, tensors)
    model, _ = load_model(tmp_path / "base")
    before = model(tokens)
    with pytest.raises(SettingError, match=message):
        ours.load(model, written)
    assert torch.equal(model(tokens), before)


NAMES = sorted(written_settings(LoRA(), [], [], "x"))
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.dictionaries(st.sampled_from(NAMES), anything))
def test_any_settings_are_read_or_refused(tiny, tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    model, lora = adapted(tiny(), rank=2, targets="blocks.0.mlp.*")
    ours.save(model, lora, folder, None)
    change(folder, values)
    with contextlib.suppress(SettingError):
        assert ours.load(tiny(), folder) == 3


def test_files_that_are_missing_or_broken(written, tmp_path):
    model, _ = load_model(tmp_path / "base")
    weights = written / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingError, match="broken or no safetensors file"):
        ours.load(model, written)
    weights.rename(written / "adapter_model.bin")
    with pytest.raises(SettingError, match=r"adapter_model\.bin could run code"):
        ours.load(model, written)
    (written / "adapter_model.bin").unlink()
    with pytest.raises(SettingError, match="no such file"):
        ours.load(model, written)
    with pytest.raises(SettingError, match="no adapter folder \(with an adapter_config"):
        load_adapter(model, tmp_path / "base")
    with pytest.raises(SettingError, match="no adapter folder \(with an adapter_config"):
        load_adapter(model, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "base_model_name_or_path names no model; give the adapter with its base"),
        ("nowhere/at/all", "the base of this adapter: nowhere/at/all: there is no such file"),
        ("itself", "is an adapter too; import that one first"),
    ],
)
def test_a_base_that_cannot_be_read(written, base, message):
    base = str(written) if base == "itself" else base
    change(written, {"base_model_name_or_path": base})
    with pytest.raises(SettingError, match=message):
        load_model(written)


def test_what_cannot_be_written(tiny, tmp_path):
    with pytest.raises(SettingError, match="model: it has no adapters"):
        ours.save(tiny(), LoRA(), tmp_path / "out", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    model, lora = adapted(tiny())
    with pytest.raises(SettingError, match="holds other files"):
        ours.save(model, lora, tmp_path / "full", None)


@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj", "layers.1.self_attn.v_proj"], ["proj"]])
def test_tensors_of_a_layer_that_the_settings_do_not_name(based, tmp_path, targets):
    model, lora = adapted(based(), targets=("blocks.*.attention.q", "blocks.*.attention.v"))
    ours.save(model, lora, tmp_path / "adapter", "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    again, _ = load_model(tmp_path / "base")
    for named in (["model.layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj", "q_proj"], None):
        path.write_text(json.dumps({**settings, "target_modules": named}))
        assert ours.load(load_model(tmp_path / "base")[0], tmp_path / "adapter")
    path.write_text(json.dumps({**settings, "target_modules": targets}))
    with pytest.raises(SettingError, match=r"config\.json: target_modules: it does not name model"):
        ours.load(again, tmp_path / "adapter")
