import json
from functools import partial
from pathlib import Path

import pytest
import torch

from culm.config import SettingError
from culm.convert import gguf, hf, native
from culm.convert.export import export, quantize
from culm.convert.load import load_model, read
from culm.model.norm import Norm
from culm.source import bytes_in
from culm.verbs.import_model import import_model

STORIES = ("weights/stories260K.bin", "weights/tok512.bin")


@pytest.mark.parametrize("kind", ["native", "run", "hf", "gguf"])
def test_import_by_what_the_path_is(tiny, tokenizer, tokens, tmp_path, kind):
    model, path = tiny(), tmp_path / ("there.gguf" if kind == "gguf" else "there")
    match kind:
        case "native":
            native.save(model, tokenizer, path)
        case "run":
            native.save(model, tokenizer, path / "model")
        case "hf":
            hf.export(model, tokenizer, path)
        case "gguf":
            gguf.export(model, tokenizer, path, "f32")
    assert "million parameters" in import_model(path, tmp_path / "here")
    again, words = load_model(tmp_path / "here")
    assert torch.equal(again(tokens), model(tokens))
    assert words.stop_ids == tokenizer.stop_ids


def test_norms_stay_in_fp32_in_a_model_of_bf16(tiny, tokenizer, tmp_path):
    """Rounding them, which are few, would cost more than rounding all other weights."""
    model = tiny()
    for norm in (module for module in model.modules() if isinstance(module, Norm)):
        torch.nn.init.normal_(norm.weight, 1, 0.1)
    native.save(model, tokenizer, tmp_path / "exact")
    quantize(tmp_path / "exact", tmp_path / "int8", "int8")
    export(tmp_path / "exact", tmp_path / "bf16")
    kinds = {p.dtype for p in read(tmp_path / "bf16", "cpu", torch.float32)[0].parameters()}
    assert kinds == {torch.float32}  # those that were stored in bf16 too
    for source in ("exact", "int8"):
        again, _ = read(tmp_path / source, "cpu", torch.bfloat16)
        weights = dict(again.named_parameters())
        for name, weight in model.named_parameters():
            if "norm" in name:
                assert torch.equal(weights[name], weight)
            elif name in weights:
                assert weights[name].dtype == torch.bfloat16


def test_import_llama2c(tmp_path, data):
    weights, words = (data / name for name in STORIES)
    with pytest.raises(SettingError, match="needs its tokenizer: culm import"):
        import_model(weights, tmp_path / "stories")
    assert "0.26 million" in import_model(weights, tmp_path / "stories", words)
    model, tokenizer = load_model(tmp_path / "stories")
    ids = tokenizer.start + tokenizer.encode("Once upon a time")
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tokenizer.decode(ids) == "Once upon a time, there was a little girl"
    assert 1 in tokenizer.stop_ids


def test_import_blueprint(tmp_path):
    given = {"vocab_size": 64, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "context_length": 16}
    (tmp_path / "plan.json").write_text(json.dumps(given))
    assert "2 layers of width 32" in import_model(tmp_path / "plan.json", tmp_path / "plan")
    assert (tmp_path / "plan.yaml").is_file()


def test_a_quickstart_is_read_as_the_model_that_it_made(tiny, tokenizer, tokens, tmp_path):
    model = tiny()
    native.save(tiny(layers=1), tokenizer, tmp_path / "base" / "model")
    native.save(model, tokenizer, tmp_path / "chat")
    assert torch.equal(load_model(tmp_path)[0](tokens), model(tokens))


def test_what_is_read_is_never_written_over(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    native.save(tiny(), tokenizer, "run/model")
    Path("link").symlink_to("run/model")
    before = bytes_in(tmp_path)
    for source, out in (("run/model", "run/model"), ("run", "run/model"), ("run/model", "link")):
        for write in (import_model, export, partial(quantize, to="int8")):
            with pytest.raises(SettingError, match="this is the source model"):
                write(source, out)
    assert bytes_in(tmp_path) == before


def test_only_a_file_without_a_tokenizer_is_given_one(tiny, tokenizer, tmp_path):
    native.save(tiny(), tokenizer, tmp_path / "model")
    with pytest.raises(SettingError, match=r"--tokenizer: \S+ has its own tokenizer"):
        import_model(tmp_path / "model", tmp_path / "out", tmp_path / "tok.bin")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(SettingError, match="model: its name is empty"):
        load_model("")
    with pytest.raises(SettingError, match="no such file or folder"):
        import_model(tmp_path / "none", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SettingError, match=r"notes\.txt: not a readable model; known: a run"):
        import_model(tmp_path / "notes.txt", tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("folder: run\n")
    with pytest.raises(SettingError, match=r"run: this run has no model yet, .* culm train with"):
        load_model(tmp_path / "run")
    assert not (tmp_path / "out").exists()


def test_impossibly_many_layers_are_refused_before_memory_is_taken(tiny, tokenizer, tmp_path):
    hf.export(tiny(), tokenizer, tmp_path / "there")
    path = tmp_path / "there" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**12}))
    with pytest.raises(SettingError, match=r"layers: it should be less than or equal to"):
        import_model(tmp_path / "there", tmp_path / "out")
