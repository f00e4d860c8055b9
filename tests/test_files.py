"""Files and folders appear completely or not at all; nothing that Culm did not make is removed."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from culm.atomic import InUseError, atomic, discard
from culm.config import SettingError
from culm.convert.gguf import header
from culm.files import read_json, read_lines, refuse_existing, write_json, write_lines
from culm.safetensors import read_safetensors
from culm.tokenizer.folder import read_inner

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def forked(work: Callable[[], None]) -> int:
    """The id of a child process that does this and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed(work: Callable[[], None]) -> None:
    """Do this in a child process, which must kill itself."""
    assert os.WTERMSIG(os.waitpid(forked(work), 0)[1]) == signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write(path: Path, text: str) -> None:
    with atomic(path) as fresh:
        fresh.mkdir()
        (fresh / "a").write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@needs_fork
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Whatever its name was, and with nothing that merely resembles it."""
    mine = {f".books.{tail}" for tail in ("partial", "123.new", "0123456789ab.culm")}
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "only copy").write_text("years of work")

    def half() -> None:
        with atomic(tmp_path / "books") as fresh:
            fresh.mkdir()
            (fresh / "a").write_text("half")
            die()

    killed(half)
    assert len(names(tmp_path)) == 4
    write(tmp_path / "other", "b")
    assert names(tmp_path) == mine | {"other"}
    assert all((tmp_path / name / "only copy").exists() for name in mine)


def test_what_was_killed_before_it_made_its_mark_goes_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("old", 3600), ("new", 0), ("full", 3600)):
        work = tmp_path / f".{name}.0123456789ab.culm"
        work.mkdir()
        if name == "full":
            (work / "only copy").write_text("years of work")
        os.utime(work, (time.time() - age,) * 2)
    write(tmp_path / "other", "b")
    left = {f".{name}.0123456789ab.culm" for name in ("new", "full")}
    assert names(tmp_path) == left | {"other"}


@needs_fork
def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    def slow() -> None:
        with atomic(tmp_path / "books") as fresh:
            fresh.write_text("first")
            (tmp_path / "ready").touch()
            time.sleep(60)

    child = forked(slow)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(InUseError, match="books: another process is writing it"):
        write(tmp_path / "books", "second")
    write(tmp_path / "neighbour", "other names are free")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    write(tmp_path / "books", "second")
    assert names(tmp_path) == {"ready", "neighbour", "books"}


@needs_fork
@pytest.mark.parametrize("moment", [1, 2], ids=["between the renames", "after them"])
def test_a_folder_is_never_lost(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the new folder takes the place of the old one."""
    write(tmp_path / "model", "old")
    rename, count = os.replace, [0]

    def dying(old: Path, new: Path) -> None:
        if count[0] == moment:
            die()
        rename(old, new)
        count[0] += 1

    def replace() -> None:
        os.replace = dying
        write(tmp_path / "model", "new")

    killed(replace)
    write(tmp_path / "other", "b")
    assert names(tmp_path) == {"model", "other"}
    assert (tmp_path / "model" / "a").read_text() == ("old" if moment == 1 else "new")


@needs_fork
def test_a_folder_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it is removed: no half of it is left under its name."""
    write(tmp_path / "step-1", "a")

    def removing() -> None:
        monkeypatch.setattr("culm.atomic._remove", die)
        discard(tmp_path / "step-1")

    killed(removing)
    assert not (tmp_path / "step-1").exists()
    write(tmp_path / "step-2", "b")
    assert names(tmp_path) == {"step-2"}


def test_other_files_in_a_folder_stay(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match=r"model: also holds notes\.txt, which would be lost"):
        write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "a").read_text() == "old"
    with atomic(tmp_path / "model", replaces=["a", "notes.txt"]) as fresh:
        fresh.mkdir()
    assert names(tmp_path) == {"model"}


def test_the_rule_of_every_verb(tmp_path: Path) -> None:
    for path in (tmp_path / "new", tmp_path):
        refuse_existing(path)  # an empty folder is nothing
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(SettingError, match=r"already exists; .* --overwrite"):
            refuse_existing(path)
        refuse_existing(path, overwrite=True)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("m.safetensors", lambda path: list(read_safetensors(path))),
        ("m.gguf", header.read),
        ("tokenizer.json", lambda path: read_inner(path.parent)),
    ],
)
def test_a_pointer_of_git_lfs_is_called_one(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(SettingError, match=rf"{name}: a pointer of Git LFS .* git lfs pull"):
        read(tmp_path / name)


def test_what_is_written_is_json(tmp_path: Path) -> None:
    """JSON has no NaN: jq, DuckDB and JavaScript refuse such a file."""
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": 1, "loss": math.nan, "of": [math.inf, {"a": (-math.inf, 2.5)}]}])
    text = path.read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "of": [None, {"a": [None, 2.5]}]}
    [line] = read_lines(path)
    assert math.isnan(line["loss"])
    write_lines(path, [line, {"step": 2, "text": "a\u2028b\x85c\ud800"}])  # separators of lines
    assert [one["step"] for one in read_lines(path)] == [1, 2]
    path.write_text('{"step": 3, "loss": NaN}\n')  # of an older run
    assert math.isnan(read_lines(path)[0]["loss"])
    write_json(tmp_path / "a.json", {"a": {"b": math.nan}})
    assert read_json(tmp_path / "a.json") == {"a": {"b": None}}
