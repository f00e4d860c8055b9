"""Every verb of the command line, on a tiny model in a temporary folder."""

import io
import json
from types import SimpleNamespace

import pytest
from tiny_run import TINY

from culm.convert.export import size_of


def test_generate_is_the_same_for_a_seed(culm, model):
    first = culm("generate", model, "A fox", "--max-tokens", 8, "--seed", 1, "--device", "cpu")
    assert first[0] == 0
    assert first[1].startswith("A fox")
    assert first == culm(
        "generate", model, "A fox", "--max-tokens", 8, "--seed", 1, "--device", "cpu"
    )


@pytest.mark.parametrize("verb", ["generate", "chat", "serve"])
@pytest.mark.parametrize(("given", "taken"), [([], "auto"), (["--dtype", "float32"], "float32")])
def test_the_precision_is_the_fastest_unless_given(culm, model, monkeypatch, verb, given, taken):
    asked = []

    def load(
        path, device, dtype, context, adapters=None, cache="plain", speculate=None, draft=None
    ):
        asked.append((device, dtype))
        raise ValueError("enough")

    monkeypatch.setattr("culm.load", load, raising=False)
    words = ["A fox"] if verb == "generate" else []
    words += ["--port", 18431] if verb == "serve" else []
    assert culm(verb, model, *words, "--device", "cpu", *given) == (1, "", "culm: enough\n")
    assert asked == [("cpu", taken)]


def test_generate_ends_at_a_stop_text(culm, model):
    line = ("generate", model, "A fox", "--max-tokens", 40, "--temperature", 0, "--device", "cpu")
    complete = culm(*line)[1].removesuffix("\n")
    stop = complete[-3:]
    code, out, _ = culm(*line, "--stop", stop, "--stop", "never said")
    assert (code, out) == (0, "A fox" + complete[5:].split(stop)[0] + "\n")


def test_a_prompt_that_does_not_fit_is_not_repeated(culm, model):
    code, out, err = culm("generate", model, "A fox " * 40, "--device", "cpu")
    assert (code, out) == (1, "")
    assert "do not fit" in err


def test_drafts_change_no_text(culm, model):
    line = ("generate", model, "A fox met a fox met a", "--max-tokens", 12, "--temperature", 0,
            "--device", "cpu", "--dtype", "float32")  # fmt: skip
    plain = culm(*line)
    assert plain[0] == 0
    assert culm(*line, "--speculate", "ngram") == plain
    code, _, err = culm(*line, "--speculate", "mtp")
    assert (code, "this model has no heads" in err) == (1, True)
    assert culm(*line, "--speculate", "magic")[0] == 2


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_server_has_the_name_of_its_folder(culm, model, monkeypatch, inner):
    served = []
    monkeypatch.setattr("culm.serve.http.server.serve", lambda *given: served.append(given[1]))
    monkeypatch.chdir(model / inner)
    for path in (model / inner, "."):
        assert culm("serve", path, "--device", "cpu")[0] == 0
    assert served == ["tiny", "tiny"]


def test_chat_ends_with_the_input(culm, model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    code, out, _ = culm("chat", model, "--device", "cpu")
    assert code == 0
    assert "/help" in out
    assert "is a base model" in out


def test_chat_answers_a_pipe_with_the_answer_alone(culm, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 17 + 25?\n"))
    code, out, _ = culm("chat", model, "--device", "cpu", "--json", "--max-tokens", 3)
    assert code == 0
    assert json.loads(out)["role"] == "assistant"


def test_eval_prints_each_task_with_its_interval(culm, model):
    code, out, _ = culm("eval", model, "--questions", 2, "--device", "cpu")
    assert code == 0
    for shown in ("addition", "expression", "95 % interval", "all"):
        assert shown in out


def test_inspect_shows_parts_shapes_and_costs(culm, model):
    code, out, _ = culm("inspect", model)
    assert code == 0
    for shown in (
        "0 - 1  Block",
        "Embedding weight (262, 32)",
        "parameters",
        "active",
        "per token",
        "compute",
    ):
        assert shown in out


def test_quantize_then_inspect(culm, model, tmp_path):
    code, out, _ = culm("quantize", model, tmp_path / "small", "--to", "int8")
    assert code == 0
    assert "kB of weights, " in out
    assert "8.44 per weight" in out
    assert "Int8Linear" in culm("inspect", tmp_path / "small")[1]
    assert size_of(tmp_path / "small") < 0.45 * size_of(model / "model")  # the embedding too
    code, _, err = culm("quantize", tmp_path / "small", tmp_path / "smaller", "--to", "int4")
    assert code == 1
    assert "quantised already" in err


@pytest.mark.parametrize(("name", "dtype"), [("hf", "float32"), ("model.gguf", "f32")])
def test_export_and_import_give_the_same_model(culm, model, tmp_path, name, dtype):
    code, out, err = culm("export", model, tmp_path / name, "--dtype", dtype)
    assert code == 0
    assert "100%" in err
    code, out, _ = culm("import", tmp_path / name, tmp_path / "again")
    assert code == 0
    assert "million parameters" in out
    say = ("A fox", "--max-tokens", 8, "--temperature", 0, "--device", "cpu")
    assert culm("generate", tmp_path / "again", *say) == culm("generate", model, *say)


def test_export_to_four_bits(culm, model, tmp_path):
    path = tmp_path / "model.gguf"
    code, out, err = culm("export", model, path, "--dtype", "q4_k_m")
    assert code == 0
    assert "MB of weights" in out
    assert "of 32 is Q5_0, not Q4_K" in err  # the tiny model's rows
    assert culm("generate", path, "A fox", "--max-tokens", 4, "--device", "cpu")[0] == 0
    code, _, err = culm("export", model, tmp_path / "new.gguf", "--dtype", "q9")
    assert code == 1
    assert "dtype: 'q9' is not one of f32, f16, bf16, q8_0, q6_k, q5_k_m" in err


def test_tokenize_then_prepare_then_plan_a_run_on_it(culm, text, tmp_path):
    code, out, _ = culm(
        "tokenize", "train", text, "--vocabulary", 280, "--out", tmp_path / "tokenizer"
    )
    assert (code, out) == (0, f"{tmp_path}/tokenizer: 280 tokens\n")
    corpus = tmp_path / "corpus"
    line = ("prepare", text, "--tokenizer", tmp_path / "tokenizer", "--out", corpus)
    code, _, err = culm(*line)
    assert code == 1
    assert "data.split=paragraphs" in err  # one document cannot be divided
    code, out, _ = culm(*line, "--split", "paragraphs")
    assert code == 0
    assert "300 documents" in out
    settings = [
        TINY[0],
        f"data={{prepared: {corpus}}}",
        "model.vocabulary=280",
        "train.batch_size=4",
    ]
    code, out, _ = culm("plan", "pretrain", *settings, f"folder={tmp_path}/run")
    assert code == 0
    assert "% filled" in out
    code, out, _ = culm("plan", "pretrain", *settings, f"folder={tmp_path}/run", "--ranks", 2)
    assert code == 0
    assert "in each of 2 processes" in out


def test_schema_is_json(culm):
    code, out, _ = culm("schema")
    assert code == 0
    found = json.loads(out)
    assert "train" in found["properties"]
    assert "never" not in found["properties"]["seed"].get("description", "never")
    settings = [
        value
        for part in (found, *found["$defs"].values())
        for name, value in part.get("properties", {}).items()
        if name != "kind"
    ]
    assert sum("description" in value for value in settings) > 0.75 * len(settings)
    assert "maximum gradient norm" in str(found["$defs"]["TrainConfig"]).lower()


def test_doctor_shows_the_machine_and_its_extras(culm):
    code, out, _ = culm("doctor")
    assert code == 0
    for shown in (
        "python",
        "torch",
        "cores",
        "memory",
        "precision",
        "sandbox",
        "Kernels of cpu",
        "compile",
        "Errors on cpu, relative to fp64",
        "matmul, bf16",
        "Extras",
        "tensorboard",
    ):
        assert shown in out
    for other in ("lint", "docs", "rl-ref", "llama-cpp", "missing"):  # of developers
        assert other not in out
