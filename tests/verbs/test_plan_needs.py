"""`culm plan` on a narrow terminal, and for a device that is not here."""

import io
import re

import pytest
from rich.console import Console

from culm.cli.training import TargetDevice
from culm.config import SettingError
from culm.plan.target import TARGETS, UTILISATION, target_of
from culm.run.settings import read_run
from culm.verbs.plan import show_plan
from culm.verbs.plan_needs import section

ROWS = [("eval.tasks[0]", "kind=arithmetic, " * 20 + "last", "tasks"), ("seed", "0", "default")]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_rows_fit_a_terminal(width):
    out = io.StringIO()
    narrow = Console(file=out, force_terminal=True, width=width, soft_wrap=True, highlight=False)
    section(narrow, "Settings", ROWS)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines[2:])) <= width
    assert out.getvalue().count("kind=arithmetic,") == 20
    assert "last" in out.getvalue()


def test_rows_in_a_file_have_a_readable_width_and_paths_that_can_be_copied():
    out, path = io.StringIO(), "/".join(["a-long-folder"] * 12)
    section(Console(file=out, soft_wrap=True), "Settings", [*ROWS, ("folder", path, "default")])
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines if path not in line) <= 100
    assert sum(path in line for line in lines) == 1
    assert out.getvalue().count("kind=arithmetic,") == 20


@pytest.mark.slow
def test_a_plan_for_a_device_that_is_not_here(tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(40):
        (text / f"{n}.txt").write_text(f"Fable {n}: a fox met {n} crows. " * 40)
    settings = [f"data.path={text}", f"folder={tmp_path / 'run'}", "tokenizer={kind: bytes}"]
    small = [*settings, "model={base: nano, vocabulary: 262}", "train.context=64"]
    show_plan(*read_run("pretrain", small), ranks=8, target="h100")
    out = capsys.readouterr().out
    assert "h100, bf16, 80.0 GB" in out
    assert "40% of the peak in its datasheet" in out
    assert "train.micro_batch_size=4 train.activation_checkpointing=none (" in out
    large = [*settings, "model={base: 1b, vocabulary: 262, context: 4096}"]
    with pytest.raises(SettingError, match=r"a device rtx3090 has 24\.0 GB"):
        show_plan(*read_run("pretrain", large), target="rtx3090")
    with pytest.raises(SettingError, match=r"micro_batch_size: 4 sequences need"):
        show_plan(*read_run("pretrain", large), ranks=8, target="rtx3090")


@pytest.mark.slow
def test_data_that_only_the_target_reaches_is_no_problem_of_the_run(tmp_path, capsys):
    pytest.importorskip("datasets")
    settings = ["data.path=owner/texts", "model={base: nano, vocabulary: 262}", "train.context=64"]
    settings.append(f"folder={tmp_path / 'run'}")
    show_plan(*read_run("pretrain", settings), target="h100")
    out = capsys.readouterr().out
    assert "h100, bf16, 80.0 GB" in out
    assert "Not read from here, so this plan says nothing of the data:\ndata.path: 'owner/te" in out
    with pytest.raises(SettingError, match=r"data\.path: 'owner/texts' is no file or folder here"):
        show_plan(*read_run("pretrain", settings))  # which would start here


def test_a_device_of_the_table():
    assert target_of("H100") is TARGETS["h100"]
    [option] = TargetDevice.__metadata__  # which imports nothing, so it repeats the names
    assert all(name in option.help for name in TARGETS)
    assert TARGETS["a100"].rate("bf16") == UTILISATION * 312e12
    with pytest.raises(SettingError, match="--device: there is no 'h10'; did you mean 'h100'"):
        target_of("h10")


@pytest.mark.parametrize(
    "name", ["ranking", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rating", "steps"))]
)
def test_a_plan_shows_what_a_reward_model_reads(name, run_file, capsys):
    show_plan(*read_run(str(run_file(name))))
    said = capsys.readouterr().out
    assert "No problem found" in said
    assert "«" in said
    if name == "ranking":  # four answers in the largest
        assert re.search(r"tokens +1,024 a step", said)
