"""Every verb of the command line, on a tiny model in a temporary folder."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from culm.cli import app, main
from culm.convert.export import size_of

VERBS = list(get_command(app).commands)
TINY = [
    "model={vocabulary: 262, width: 32, layers: 2, context: 64, attention: {kind: gqa, heads: 2}}",
    "tokenizer={kind: bytes, specials: true}",
    "train.batch_size=4",
    "eval.measures.held_out.tokens=500",
    "device=cpu",
]


@pytest.fixture
def culm(monkeypatch, capsys, tmp_path):
    """Runs a command line; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["culm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "fables.txt"
    path.write_text("\n\n".join(f"Fable {n}: a fox met {n} crows and sang." for n in range(300)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, text) -> Path:
    """A run folder, trained for three steps by the verb itself."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [f"data.path={text}", "data.split=paragraphs", "train.steps=3", f"folder={folder}"]
    line = [sys.executable, "-m", "culm", "train", "pretrain", *TINY, *settings]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Done: {folder}/model, {folder}/report.md\n"
    return folder


# -- starting ---------------------------------------------------------------------------------


def cpu_seconds(code: str) -> float:
    """Of a fresh interpreter; the least of three, since other processes disturb."""
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = os.times()
        user = after.children_user - before.children_user
        spent.append(user + after.children_system - before.children_system)
    return min(spent)


def test_help_is_fast_and_light():
    code = (
        "import sys\nsys.argv = ['culm', '--help']\nfrom culm.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert cpu_seconds(code) < 0.6


def test_import_is_fast():
    assert cpu_seconds("import culm") < 0.3


def test_the_help_of_a_verb_imports_no_torch():
    code = (
        "import sys\nfrom culm.cli import app\n"
        f"for verb in {VERBS}:\n"
        "    app([verb, '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_verbs_are_those_of_the_readme():
    listed = {
        "quickstart", "tokenize", "prepare", "plan", "train", "eval", "generate", "chat", "serve",
        "quantize", "export", "import", "inspect", "bench", "schema", "doctor",
    }  # fmt: skip
    assert listed <= set(VERBS)


def test_the_help_groups_all_verbs(culm):
    _, out, _ = culm("--help")
    assert all(command.rich_help_panel for command in get_command(app).commands.values())
    assert " Commands " not in out


# -- verbs ------------------------------------------------------------------------------------


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


# -- plan -------------------------------------------------------------------------------------


def test_plan_shows_everything_and_writes_nothing(culm, text, tmp_path):
    settings = [*TINY, f"data.path={text}", "data.split=paragraphs", f"folder={tmp_path}/run"]
    code, out, _ = culm("plan", "pretrain", *settings)
    assert code == 0
    assert not (tmp_path / "run").exists()
    assert origin(out, "train.batch_size") == "command line"
    assert origin(out, "train.schedule.kind") == "pretrain"
    assert origin(out, "train.clip") == "default"
    for shown in ("«", "parameters", "compute", "gradients", "epochs", "No problem found"):
        assert shown in out


def origin(out: str, name: str) -> str:
    """The last column of a setting's line."""
    line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
    return line.rsplit("  ", 1)[1].strip()


def test_plan_marks_what_is_learned_of_a_dialogue(culm, model, tmp_path):
    dialogues = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    dialogues.write_text("\n".join(json.dumps({"messages": turns, "n": n}) for n in range(3)))
    line = ("sft", f"start={model}", "device=cpu")
    data = f"data={{format: chat, path: {dialogues}, held_out: 0}}"
    code, out, _ = culm("plan", *line, data, "train.batch_size=2")
    assert code == 0
    assert "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»" in out


def test_plan_of_reinforcement_shows_questions(culm, model):
    code, out, _ = culm("plan", "grpo", f"start={model}", "train.batch_size=8", "device=cpu")
    assert code == 0
    assert "groups of 8" in out
    assert "at least" in out


def test_plan_names_every_fatal_problem(culm, text, tmp_path):
    few = [setting for setting in TINY if not setting.startswith(("train.", "device"))]
    settings = [
        *few,
        f"data.path={tmp_path}/none.txt",
        "train.batch_size=400000000",
        "device=abacus",
    ]
    code, out, err = culm("plan", "pretrain", *settings)
    assert code == 1
    assert "data.path: there is no file or folder" in err
    assert "device: 'abacus'" in err
    assert "train.batch_size" in out
    code, _, err = culm("plan", "pretrain", *few, f"data.path={text}", "data.held_out=0",
                        "train.batch_size=400000000")  # fmt: skip
    assert code == 1
    assert "train.micro_batch_size: 400000000 sequences need" in err
    taken = tmp_path / "taken"
    taken.touch()
    code, _, err = culm("plan", "pretrain", *TINY, f"data.path={text}", "data.held_out=0",
                        f"folder={taken}", "train.optimizer.rate=1")  # fmt: skip
    assert code == 1
    assert f"folder: {taken} is a file" in err


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["train"], "run: name a file, or one of 125m, 32b, 7b, bytes, coconut"),
        (["plan"], "run: name a file, or one of 125m, 32b, 7b, bytes, coconut"),
        (["chat", "runs/nope"], "runs/nope: there is no such file or folder"),
        (["chat", "./nope"], "nope: there is no such file or folder"),
        (["train", "pretrain", "data.path=runs/nope"], "there is no file or folder 'runs/nope'"),
        (["train", "nowhere"], "run: there is no 'nowhere'"),
        (["train", "pretrain", "train.stepz=3"], "train.stepz: no such setting; did you mean"),
        (["train", "pretrain", "train.steps=many"], "train.steps: "),
        (["train", "pretrain", "train.optimizer.rate=.inf"], "train.optimizer.rate: "),
        (["train", "sft", "start=runs/none"], "start: runs/none: there is no such file or folder"),
        (["tokenize", "train", ""], "data.path: it is empty"),
        (["quickstart", "--folder", ""], "--folder: it is empty"),
        (["prepare", "stdlib", "--tokenizer", "t", "--out", "o", "--held-out", "2"], "held_out"),
        (["generate", "no-such-model", "x"], "no-such-model: there is no such file or folder"),
        (["inspect", "no-such-model"], "no-such-model: there is no such file or folder"),
        (["eval", "no-such-model", "--suite", "nothing"], "eval: there is no 'nothing'"),
        (["import", "no-such-file", "out"], "no-such-file: there is no such file or folder"),
    ],
)
def test_errors_are_one_sentence(culm, line, sentence):
    code, _, err = culm(*line)
    assert code == (78 if line[0] == "train" else 1)
    assert err.startswith("culm: ")
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("finetune", "culm train sft"), ("evaluate", "culm eval"), ("trian", "culm train")],
)
def test_an_unknown_verb_is_answered_with_the_near_one(culm, wrong, near):
    code, _, err = culm(wrong, "x")
    assert code == 2
    assert f"There is no verb '{wrong}'; try `{near}`." in " ".join(err.replace("│", "").split())
    assert "--help` lists" in culm("qqqq")[2]


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", b"\x80?"), ("ascii", b"??")])
def test_no_character_ends_a_run(encoding, shown):
    """Where the encoding of the locale has none for it, as on Windows."""
    code = (
        "import sys; from culm.verbs.failure import run; "
        "run(lambda: sys.stdout.write('\u20ac\u6771'))"
    )
    line = [sys.executable, "-X", "utf8=0", "-c", code]
    given = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(line, capture_output=True, env=given, check=False)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr
    del given["PYTHONIOENCODING"]
    line[-1] = "import sys; sys.stdout.reconfigure(encoding='cp1252', errors='strict'); " + code
    done = subprocess.run(line, capture_output=True, env=given, check=False)
    assert (done.returncode, done.stdout) == (0, "\u20ac\u6771".encode()), done.stderr


def test_no_character_ends_a_run_in_the_c_locale():
    """Where Python's streams are ASCII, and what is not ASCII in a command becomes surrogates."""
    code = (
        "import sys; from culm.verbs.failure import run; "
        "run(lambda: sys.stdout.write(sys.argv[1] + '\\u20ac\\ud800'))"
    )
    given = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    given |= {"LC_ALL": "C", "PYTHONUTF8": "0"}
    line = [sys.executable, "-c", code, "\u6771"]
    done = subprocess.run(line, capture_output=True, env=given, check=False)
    assert (done.returncode, done.stdout) == (0, "???\u20ac?".encode()), done.stderr


def test_other_errors_name_the_setting(culm, model, tmp_path):
    assert (
        "culm: --to: 'int3' is not one of"
        in culm("quantize", model, tmp_path / "x", "--to", "int3")[2]
    )
    assert "dtype: 'int3'" in culm("export", model, tmp_path / "x", "--dtype", "int3")[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = culm("serve", model, "--port", port)
    assert code == 1
    assert "is in use; choose another with --port" in err


def test_tokenize_replaces_only_a_tokenizer(culm, text, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.txt").write_text("years of work")
    code, _, err = culm("tokenize", "train", text, "--out", tmp_path / "own", "--overwrite")
    assert code == 1
    assert "holds other files, which would be lost" in err


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["culm", "inspect", "no-such-model", "--debug"])
    with pytest.raises(ValueError, match="there is no such file"):
        main()
