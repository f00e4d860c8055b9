"""`culm train` where its corpus is bad, the disk is full, or a person stops it before it trains."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from culm.cli import main
from culm.config import SettingError, UnavailableError
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train
from culm.train.checkpoint.folder import steps_in
from culm.train.trackers.tensorboard import TensorBoard
from culm.verbs.plan import show_plan
from culm.verbs.train import train_run

LIMITED = (
    "import resource, signal; from culm.cli import main; "
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main()"
)
unix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits")


@pytest.fixture
def line(stage: Callable[..., dict], tmp_path: Path) -> list[str]:
    """The command line of a new run on `text.txt`, which is to be written, in `run`."""
    settings: dict[str, Any] = {**stage("pretrain"), "folder": str(tmp_path / "run")}
    settings["data"] = {"path": str(tmp_path / "text.txt"), "split": "paragraphs"}
    settings["tokenizer"] = {"kind": "bpe", "vocabulary": 262}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["train", str(tmp_path / "run.yaml")]


def paragraphs(count: int) -> str:
    return "\n\n".join(f"Fable {n}: a fox met {n} crows and sang to them." for n in range(count))


def left(tmp_path: Path) -> set[str]:
    """What a command left in the run folder, besides its settings, status and lock; of a run that
    was refused there is no folder.
    """
    if not (tmp_path / "run").exists():
        return set()
    return {path.name for path in (tmp_path / "run").iterdir()} - {
        "run.yaml", "status.json", ".lock"
    }  # fmt: skip


def assert_told(said: str, sentence: str) -> None:
    """The last line is the one sentence; a progress bar may stand before it."""
    *before, last = said.strip().splitlines()
    assert last.startswith("culm: ")
    assert sentence in last
    assert not [line for line in before if not line.startswith(("tokenizer ", "prepare "))], said


def works(line: list[str], tmp_path: Path) -> bool:
    """Whether the same command, with a good corpus, trains to its end."""
    (tmp_path / "text.txt").write_text(paragraphs(30))
    return train(read_run(line[1])[0]).finished


@pytest.mark.parametrize(
    ("text", "sentence", "kept"),
    [
        (b"", "text.txt: nothing to read: it contains no text", set()),
        (b"one document", "one document cannot be divided into training", {"tokenizer"}),
        (
            b"good\n\nbad \xff",
            "text.txt: line 3: byte 10 is not UTF-8; save the file as UTF-8",
            set(),
        ),
    ],
    ids=["empty", "one document", "not UTF-8"],
)
def test_a_bad_corpus(
    text: bytes, sentence: str, kept: set[str], line: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "text.txt").write_bytes(text)
    monkeypatch.setattr(sys, "argv", ["culm", *line])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78
    assert_told(capsys.readouterr().err, sentence)
    assert left(tmp_path) == kept
    assert works(line, tmp_path)


@unix
def test_a_disk_that_is_full_while_preparing(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(paragraphs(3000))
    command = [sys.executable, "-c", LIMITED, *line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert_told(
        done.stderr,
        "run/data: could not be written (File too large); nothing was changed; choose another",
    )
    assert left(tmp_path) == {"tokenizer"}
    assert works(line, tmp_path)


@unix
@pytest.mark.parametrize(
    ("number", "code", "last"),
    [
        (signal.SIGINT, 130, "culm: interrupted; the same command starts again"),
        pytest.param(signal.SIGTERM, 143, "", marks=pytest.mark.slow),
    ],
    ids=["interrupted", "terminated"],
)
@pytest.mark.parametrize(
    "seen",
    [pytest.param("run.yaml", marks=pytest.mark.slow), ".data.*"],
    ids=["tokenizer", "preparing"],
)
def test_stopped_before_it_trains(
    seen: str, number: signal.Signals, code: int, last: str, line: list[str], tmp_path: Path
) -> None:
    """While the tokenizer is trained, which follows the settings; while the corpus is prepared."""
    (tmp_path / "text.txt").write_text(paragraphs(200_000))
    command = [sys.executable, "-m", "culm", *line]
    # A shell starts what it runs behind with interrupts ignored, and children would inherit that.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    until = time.monotonic() + 200
    while not list((tmp_path / "run").glob(seen)) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said.strip().endswith(last)
    assert "Traceback" not in said
    assert left(tmp_path) == ({"tokenizer"} if seen == ".data.*" else set())
    assert works(line, tmp_path)


FULL = Path("/dev/full")


@unix
@pytest.mark.parametrize(
    "output",
    ["full", *(pytest.param(o, marks=pytest.mark.slow) for o in ("closed pipe", "closed"))],
)
def test_a_terminal_that_is_gone_does_not_end_the_training(
    output: str, line: list[str], tmp_path: Path
) -> None:
    """Messages go to a full disk, or to a program that reads no more, as `head -1`."""
    (tmp_path / "text.txt").write_text(paragraphs(30))
    command = [sys.executable, "-m", "culm", *line]
    if output == "full":
        if not FULL.exists():
            pytest.skip("no /dev/full here")
        with FULL.open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=full, timeout=120)
    elif output == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=writing, timeout=120)
        os.close(writing)
    else:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], timeout=120, check=False
        )
    assert done.returncode == 0
    for name in ("model/model.safetensors", "results.json", "report.md"):
        assert (tmp_path / "run" / name).exists()


@unix
def test_a_hang_up_ends_a_run_after_a_whole_step(line: list[str], tmp_path: Path) -> None:
    """As when the terminal is closed; under nohup it trains on."""
    (tmp_path / "text.txt").write_text(paragraphs(30))
    command = [sys.executable, "-m", "culm", *line, "train.steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 100
    while len(read_lines(metrics)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert steps_in(tmp_path / "run")


def test_a_plot_that_fails_costs_the_plot(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    def failing(*arguments: Any, **more: Any) -> None:
        raise ValueError("'yerr' must not contain negative values")

    (tmp_path / "text.txt").write_text(paragraphs(30))
    monkeypatch.setattr("culm.eval.report.lines", failing)
    train_run(line[1], [])
    found = capsys.readouterr()
    assert "the plot failed: 'yerr' must not" in " ".join(found.err.split())
    assert found.out.startswith("Done: ")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "(loss: the plot failed)" in report
    assert "| steps | 3 |" in report
    monkeypatch.setattr("culm.verbs.train.write_report", failing)
    train_run(line[1], [])
    assert "The report could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "ranks", "message"),
    [
        ("train.batch_size=7", 2, r"train\.batch_size: 7 does not divide over 2 ranks"),
        pytest.param(
            "eval.measures.samples.texts=[" + "word " * 200 + "]", 1,
            r"eval\.measures\.samples: texts: .* leaves no room",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "train.context=1", 1, r"train\.context: 1 leaves nothing to predict",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_plan_finds_what_training_refuses(
    setting: str, ranks: int, message: str, line: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(paragraphs(60))
    config, origins = read_run(line[1], [setting])
    with pytest.raises(SettingError, match=f"this run cannot start:(.|\n)*{message}"):
        show_plan(config, origins, ranks)


@pytest.mark.parametrize("folder", [pytest.param("new", marks=pytest.mark.slow), "stopped"])
def test_a_plan_says_that_a_text_changed(folder: str, line: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(paragraphs(60))
    train(read_run(line[1], ["train.steps=1"])[0])
    text.write_text(paragraphs(61))
    if folder == "new":
        show_plan(*read_run(line[1], [f"folder={tmp_path}/new"]))
        return
    with pytest.raises(SettingError, match=r"data\.path: \S+text\.txt had [\d,]+ bytes then"):
        show_plan(*read_run(line[1]))


@pytest.mark.slow
def test_a_plan_asks_for_the_packages_of_trackers(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training does before it prepares anything."""

    def missing(self: TensorBoard) -> None:
        raise ImportError("train.trackers: tensorboard is not installed")

    (tmp_path / "text.txt").write_text(paragraphs(60))
    monkeypatch.setattr(TensorBoard, "check", missing)
    config, origins = read_run(line[1], ["train.trackers=tensorboard"])
    with pytest.raises(SettingError, match=r"train\.trackers: tensorboard is not installed"):
        show_plan(config, origins)
    with pytest.raises(ImportError, match=r"train\.trackers: tensorboard is not installed"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_what_may_come_back_is_not_final(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A process or a service that was lost; a launcher may start the run again."""

    def lost(config: object) -> None:
        raise UnavailableError("data.stream: worker 0 ended with signal SIGKILL")

    monkeypatch.setattr("culm.verbs.train.train", lost)
    monkeypatch.setattr(sys, "argv", ["culm", *line])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "culm: data.stream: worker 0 ended" in capsys.readouterr().err
