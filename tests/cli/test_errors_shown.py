"""Errors of the command line."""

import os
import socket
import subprocess
import sys

import pytest

from culm.cli import main


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
