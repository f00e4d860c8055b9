"""Every family that GGUF has: read back the same, and the logits that llama.cpp computes."""

import numpy as np
import pytest
import torch
from family_models import FAMILIES, peer_of, saved

from culm.config import SettingError, parse
from culm.convert import gguf as ours
from culm.convert import hf
from culm.convert.gguf.families import FAMILIES as GGUF_FAMILIES
from culm.model.transformer import Transformer, TransformerConfig

# What llama.cpp does not have, and the setting that is named.
WITHOUT = {
    "Mistral": "window",
    "Phi-3": "window",
}


@pytest.fixture(scope="module")
def rows():
    return torch.randint(3, 300, (1, 50), generator=torch.Generator().manual_seed(0))


def read(name, tokenizer, folder):
    return hf.load(saved(peer_of(name), tokenizer, folder))[0].eval()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT])
def test_written_and_read_back(name, tokenizer, rows, tmp_path):
    model = read(name, tokenizer, tmp_path / "hf")
    ours.export(model, tokenizer, tmp_path / "m.gguf", "f32")
    again, _ = ours.load(tmp_path / "m.gguf")
    assert (again.eval()(rows) - model(rows)).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "setting"), WITHOUT.items())
def test_what_it_has_not_is_named(name, setting, tokenizer, tmp_path):
    model = read(name, tokenizer, tmp_path / "hf")
    with pytest.raises(SettingError, match=rf"^model\.attention\S*:?.*{setting}"):
        ours.export(model, tokenizer, tmp_path / "m.gguf", "f32")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemma_scales_by_its_width(name, layers):
    """As in llama.cpp, which knows the model of 27B by its layers: no key of a file says so."""
    for count, scale in ((layers, 16**-0.5), (layers - 1, 32**-0.5)):
        assert only_needed(name, block_count=count).attentions[0].resolved(64).scale == scale


def test_the_first_files_of_gemma_2_have_what_llama_cpp_has_in_its_code():
    config = only_needed("gemma2", block_count=2)
    assert [part.window for part in config.attentions] == [4096, None]
    assert (config.attentions[0].softcap, config.softcap) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("name", "without"), [("Gemma 2", "model.softcap"), ("Gemma 2", "softcap"), ("Gemma 3", "+")]
)
def test_caps_that_llama_cpp_would_change_are_refused(name, without, tokenizer, tmp_path):
    """It caps scores of Gemma 2 always, and never those of Gemma 3."""
    given = read(name, tokenizer, tmp_path / "hf").config
    if without == "model.softcap":
        config = given.model_copy(update={"softcap": None})
    else:
        cap = {"softcap": 20.0 if without == "+" else None}
        config = given.model_copy(
            update={"attention": tuple(part.model_copy(update=cap) for part in given.attention)}
        )
    with pytest.raises(SettingError, match="softcap"):
        ours.export(config.build(), tokenizer, tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, None), ({"type": "none"}, None), ({"factor": 4.0}, "linear"),
     ({"type": "none", "factor": 4.0}, None), ({"type": "linear", "factor": 4.0}, "linear")],
)  # fmt: skip
def test_a_factor_without_a_type_is_linear(settings, kind):
    given = {f"rope.scaling.{key}": value for key, value in settings.items()}
    scaling = only_needed("llama", block_count=2, **given).attentions[0].rope.scaling
    assert scaling is None if kind is None else (scaling.kind, scaling.factor) == (kind, 4.0)


def only_needed(name, **settings):
    """Our settings for a file with only the keys that llama.cpp needs, and these."""
    family = next(one for one in GGUF_FAMILIES if one.name == name)
    given = {
        "vocabulary": 300, "tied": True, "embedding_length": 64, "context_length": 8192,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
        "attention.layer_norm_rms_epsilon": 1e-6, "feed_forward_length": 96, **settings,
    }  # fmt: skip
    return family.config(given, "x.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-OSS", "Mixtral", "DeepSeek-V3", "GPT-2"])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_llama_cpp_reads_every_kind(name, kind, tokenizer, rows, tmp_path):
    """Biases of experts and routers above all, which it computes with in fp32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    ours.export(read(name, tokenizer, tmp_path / "hf"), tokenizer, tmp_path / "m.gguf", kind)
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False)
    peer.eval(rows[0, :20].tolist())
    assert np.isfinite(peer.scores[:20]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT])
def test_llama_cpp_computes_the_same(name, tokenizer, rows, tmp_path):
    """Its keys and values are in fp16, from which the difference comes.

    It also rounds the ends of the ramp of YaRN, which GPT-OSS does not.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    model = read(name, tokenizer, tmp_path / "hf")
    ours.export(model, tokenizer, tmp_path / "m.gguf", "f32")
    if name == "GPT-OSS":
        model = rounded(model)
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False)
    peer.eval(rows[0].tolist())
    found, expected = torch.tensor(np.array(peer.scores[:50])), model(rows)[0].detach()
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 0.02


def rounded(model):
    """The model with whole pairs at the ends of its ramp."""
    values = model.config.model_dump()
    for attention in values["attention"]:
        attention["rope"]["scaling"]["truncate"] = True
    other = parse(TransformerConfig, values).build()
    other.load_state_dict(model.state_dict())
    return other.eval()


GEMMA2 = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def test_keys_that_a_file_lacks_have_the_values_of_llama_cpp(tokenizer, tmp_path):
    """The first files of Gemma 2 have no soft caps and no window."""
    known = {family.name: family for family in GGUF_FAMILIES}
    model = read("Gemma 2", tokenizer, tmp_path / "hf").config.resolved()
    given = known["gemma2"].write(model)
    config = known["gemma2"].config({k: v for k, v in given.items() if k not in GEMMA2}, "x")
    assert (config.softcap, config.attentions[0].softcap) == (30.0, 50.0)
    assert [part.window for part in config.attentions[:2]] == [4096, None]
    shape = {"vocabulary": 320, "width": 64, "layers": 2, "context": 64, "tied": False}
    attention = {"kind": "gqa", "heads": 4}
    plain = parse(TransformerConfig, {**shape, "attention": attention}).resolved()
    line = known["llama"].write(plain)
    for kind, scaled in (({}, True), ({"rope.scaling.type": "none"}, False)):
        config = known["llama"].config({**line, **kind, "rope.scaling.factor": 4.0}, "x")
        scaling = config.attentions[0].rope.scaling
        assert (scaling is not None and scaling.factor == 4.0) == scaled


def test_a_model_without_the_soft_caps_of_its_family_is_refused(tokenizer, tmp_path):
    """A file cannot say so: llama.cpp would take those of Gemma 2."""
    model = read("Gemma 2", tokenizer, tmp_path / "hf")
    config = model.config.model_copy(update={"softcap": None})
    with pytest.raises(SettingError, match=r"model\.softcap: no GGUF family has this"):
        ours.export(Transformer(config), tokenizer, tmp_path / "m.gguf", "f32")
