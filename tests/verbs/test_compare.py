"""culm compare: ends of runs with intervals over seeds, by family and by panel."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError
from culm.eval.curves import grouped, read_measured, without_seed
from culm.verbs.compare import show_compare
from culm.verbs.plot import show_plot


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., list[Path]]:
    """Folders of runs: (corpus, family, seed, bits per byte at the end, FLOPs of a token)."""

    def make(*given: tuple[str, str, int, float, float | None]) -> list[Path]:
        folders = []
        for corpus, family, seed, end, flops in given:
            folder = tmp_path / corpus / f"{family}-{seed}"
            folder.mkdir(parents=True)
            model = {"kind": family, **{f"setting_{n}": f"{family} {n}" for n in range(9)}}
            settings = {"seed": seed, "data": {"path": [f"texts/{corpus}"]}, "model": model}
            (folder / "run.yaml").write_text(yaml.safe_dump(settings))
            steps = ({"step": n, "loss": 3.0, "tokens": 100 * n} for n in (1, 2))
            (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in steps))
            (folder / "eval.jsonl").write_text(json.dumps({"step": 2, "bits_per_byte": end}))
            start = {} if flops is None else {"flops_per_token": flops}
            (folder / "manifest.json").write_text(json.dumps({"starts": [start]}))
            (folder / "results.json").write_text("{}")
            folders.append(folder)
        return folders

    return make


def compare(folders: list[Path], out: Path, **options: str | None) -> None:
    given = {"metric": "bits-per-byte", "over": None, "panels": None, **options}
    show_compare([str(one) for one in folders], out=str(out), overwrite=True, **given)


def test_the_least_is_first_with_its_interval_and_flops(runs, tmp_path: Path, capsys) -> None:
    folders = runs(
        *(("a", "patches", seed, 2.0 + seed, 5e9) for seed in range(3)),
        *(("a", "bytes", seed, 2.5, 1e9) for seed in range(2)),
    )
    compare(folders, tmp_path / "c.svg")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["bytes", "2", "2.5000", "±", "0.0000", "200.0", "GFLOP"]
    # Student's t of two degrees of freedom, over the root of three: 4.3027 * 1 / 1.732.
    assert lines[2] == ["patches", "3", "3.0000", "±", "2.4842", "1.0", "TFLOP"]
    assert (tmp_path / "c.svg").stat().st_size > 5000


def test_a_setting_makes_panels(runs, tmp_path: Path, capsys) -> None:
    folders = runs(
        ("a", "bytes", 0, 2.0, 1e9), ("b", "bytes", 0, 1.0, 1e9), ("b", "blt", 0, 3.0, 1e9)
    )
    compare(folders, tmp_path / "c.svg", panels="data.path")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if len(line) > 1] == ["a", "bytes", "b", "bytes", "blt"]
    with pytest.raises(SettingError, match=r"no setting 'data\.paths'; did you mean 'data\.path'"):
        compare(folders, tmp_path / "d.svg", panels="data.paths")


def test_values_of_different_texts_are_not_ranked_together(runs, tmp_path: Path, capsys) -> None:
    """Where a metric says as much about the text; scores of a task do not."""
    folders = runs(("a", "bytes", 0, 2.0, None), ("b", "blt", 0, 1.0, None))
    for folder in folders:
        line = {"step": 2, "bits_per_byte": 2.0, "books.bits_per_byte": 1.0, "scores": {"x": 0.5}}
        (folder / "eval.jsonl").write_text(json.dumps(line))
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        settings["eval"] = {"measures": {"books": {"kind": "text", "path": "books"}}}
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    for metric, titles in (
        ("bits_per_byte", ["a", "b"]), ("books.bits_per_byte", ["runs"]), ("scores.x", ["runs"]),
    ):  # fmt: skip
        compare(folders, tmp_path / "c.svg", metric=metric)
        said = capsys.readouterr()
        assert [x.split()[0] for x in said.out.splitlines() if metric in x] == titles
        assert ("different texts" in said.out + said.err) is (len(titles) > 1)


def test_a_text_is_known_by_the_digests_of_its_files(runs, tmp_path: Path, capsys) -> None:
    """One text that two tokenizers prepared in two places is one."""
    folders = runs(("a", "bytes", 0, 2.0, None), ("b", "blt", 0, 1.0, None))
    for folder in folders:
        made = {"source": folder.name, "origin": {f"{folder}.txt": {"sha256": "0"}}}
        (folder / "data").mkdir()
        (folder / "data" / "manifest.json").write_text(json.dumps(made))
    compare(folders, tmp_path / "c.svg")
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()[1:3]] == ["blt", "bytes"]
    for folder in folders:  # the same path, with other contents
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "data": {"path": "t.txt"}}))
        made = {"source": "t.txt", "origin": {"t.txt": {"sha256": 20 * folder.parent.name}}}
        (folder / "data" / "manifest.json").write_text(json.dumps(made))
    compare(folders, tmp_path / "c.svg")
    titles = [x.split()[:2] for x in capsys.readouterr().out.splitlines() if "bits_per" in x]
    assert titles == [["t.txt,", 12 * "a"], ["t.txt,", 12 * "b"]]


def test_a_copy_of_a_run_is_no_further_seed(runs, tmp_path: Path, capsys) -> None:
    folders = runs(*(("a", "bytes", seed, 2.0, 1e9) for seed in range(2)))
    shutil.copytree(folders[1], folders[1].with_name("copy-7"))
    compare([*folders, folders[1].with_name("copy-7")], tmp_path / "c.svg")
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split()[1] == "2"
    assert "copy-7, with the settings and the seed of" in said.out + said.err


def test_a_run_without_the_metric_is_left_out(runs, tmp_path: Path, capsys) -> None:
    folders = runs(("a", "bytes", 0, 2.0, 1e9), ("a", "blt", 0, 1.0, 1e9))
    (folders[1] / "eval.jsonl").write_text("")
    compare(folders, tmp_path / "c.svg")
    said = capsys.readouterr()
    assert "No bits_per_byte, and left out" in said.out + said.err
    assert [line.split()[:2] for line in said.out.splitlines()[1:-1]] == [["bytes", "1"]]
    show_plot(
        [*map(str, folders)], ["bits_per_byte", "loss"], str(tmp_path / "p.svg"), "step", True
    )
    assert "blt" in capsys.readouterr().out


def test_runs_that_read_a_run_of_each_seed_are_one_group(runs) -> None:
    """As models of patches, each with the small model of its seed."""
    small = runs(("s", "entropy", 0, 1.0, None), ("s", "entropy", 1, 1.0, None))
    folders = runs(("a", "blt", 0, 1.0, None), ("a", "blt", 1, 1.0, None))
    for folder, read in zip(folders, small, strict=True):
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        settings["model"]["patching"] = {"path": str(read)}
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    assert list(grouped([read_measured(folder) for folder in folders])) == ["blt"]


def test_runs_without_flops_are_drawn_over_steps(runs, tmp_path: Path) -> None:
    folders = runs(("a", "bytes", 0, 2.0, None), ("a", "blt", 0, 3.0, 1e9))
    compare(folders, tmp_path / "c.png")
    with pytest.raises(SettingError, match="bytes-0 has no FLOPs; use step or tokens"):
        compare(folders, tmp_path / "c.png", over="flops")
    result = CliRunner().invoke(app, ["compare", str(folders[0]), "--metric", "bits"])
    assert "has no 'bits'" in str(result.exception)


def test_a_run_that_still_trains_is_left_out(runs, tmp_path: Path, capsys) -> None:
    """Its last value is that of the start."""
    folders = runs(*(("a", "bytes", seed, 2.0, 1e9) for seed in range(3)))
    (folders[1] / "results.json").unlink()
    compare(folders, tmp_path / "c.png")
    said = capsys.readouterr()
    assert "left out" in said.err + said.out
    assert "bytes-1" in said.err + said.out
    assert said.out.splitlines()[-2].split()[:2] == ["bytes", "2"]
    for folder in folders:
        (folder / "results.json").unlink(missing_ok=True)
    with pytest.raises(SettingError, match="no run is finished"):
        compare(folders, tmp_path / "c.png")


def test_a_run_that_diverged_is_left_out(runs, tmp_path: Path, capsys) -> None:
    """Its last finite value is the best of all, and not that of its end."""
    folders = runs(
        *(("a", "bytes", seed, 2.0, 1e9) for seed in range(3)), ("a", "blt", 0, 1.8, 1e9)
    )
    for folder in (folders[1], folders[3]):
        lines = [{"step": 1, "bits_per_byte": 1.5}, {"step": 2, "bits_per_byte": None}]
        (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare(folders, tmp_path / "c.png")
    said = capsys.readouterr()
    assert "Diverged" in said.err + said.out
    assert {name for name in ("bytes-0", "bytes-1", "bytes-2", "blt-0")
            if f"/{name}" in said.err + said.out} == {"bytes-1", "blt-0"}  # fmt: skip
    assert [line.split()[:2] for line in said.out.splitlines()[-3:-1]][1:] == [["bytes", "2"]]
    with pytest.raises(SettingError, match="the last bits_per_byte of every run is no finite"):
        compare([folders[1], folders[3]], tmp_path / "c.png")


def test_paths_that_end_alike_are_two_panels(runs, tmp_path: Path, capsys) -> None:
    folders = runs(("a", "bytes", 0, 2.0, None), ("b", "bytes", 0, 1.0, None))
    for folder, path in zip(folders, ("one/train.txt", "two/train.txt"), strict=True):
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "data": {"path": path}}))
    compare(folders, tmp_path / "c.svg", panels="data.path")
    said = capsys.readouterr().out
    titles = [line.split()[0] for line in said.splitlines() if "bits_per_byte" in line]
    assert titles == ["one/train.txt", "two/train.txt"]


def test_a_panel_of_a_setting_that_is_a_run_has_the_name_of_its_folder(
    runs, tmp_path: Path, capsys
) -> None:
    """Not all of its settings; the starts of two seeds are one panel."""
    starts = runs(*(("s", name, seed, 1.0, None) for name in ("wide", "deep") for seed in (0, 1)))
    folders = runs(*(("a", f"{x}-run", y, 2.0, None) for x in ("wide", "deep") for y in (0, 1)))
    for folder, start in zip(folders, starts, strict=True):
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "start": str(start)}))
    compare(folders, tmp_path / "c.svg", panels="start")
    said = capsys.readouterr().out
    titles = [line.split()[0] for line in said.splitlines() if "bits_per_byte" in line]
    assert titles == ["wide", "deep"]
    assert "setting_0" not in said


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/a/seed-1", "runs/a"), ("runs/a-2", "runs/a"), ("runs/gpt2", "runs/gpt2")],
)
def test_the_name_of_a_run_without_its_seed(folder: str, name: str) -> None:
    assert without_seed(Path(folder)) == Path(name)


def test_a_run_without_a_measure_does_not_hide_the_others(runs, tmp_path: Path, capsys) -> None:
    """One of a folder that has just started, or that failed before its first step."""
    (folder,) = runs(("a", "bytes", 0, 2.0, None))
    (empty := folder.parent / "new").mkdir()
    (empty / "run.yaml").write_text("seed: 1\n")
    compare([folder.parent], tmp_path / "c.svg")
    said = capsys.readouterr()
    assert "bytes" in said.out
    assert f"Left out: {empty}" in said.out + said.err
    with pytest.raises(SettingError, match="measured nothing"):
        compare([empty], tmp_path / "d.svg")


def test_names_of_runs_are_no_markup(runs, tmp_path: Path, capsys) -> None:
    """Neither that of the terminal nor the mathematics of the plots."""
    folders = runs(("a", r"[red]$\x$", 0, 2.0, None), ("a", "b[blue]", 0, 1.0, None))
    compare(folders, tmp_path / "c.svg")
    said = capsys.readouterr().out
    assert r"[red]$\x$" in said
    assert "b[blue]" in said


def test_only_a_seed_is_left_out_of_a_name(runs) -> None:
    names = ("gpt2", "rate=1e-3", "blt-seed", "mega_12")
    folders = runs(*(("a", name, seed, 1.0, None) for name in names for seed in (0, 1)))
    renamed = [folder.rename(folder.parent / folder.name.replace("e-3-", "e-3-seed-"))
               for folder in folders]  # fmt: skip
    assert list(grouped([read_measured(folder) for folder in renamed])) == [
        "gpt2", "rate=1e-3", "blt", "mega_12",
    ]  # fmt: skip
    single = [renamed[0].rename(renamed[0].parent / "gpt2"), renamed[2].rename(
        renamed[2].parent / "rate=1e-3")]  # fmt: skip
    assert list(grouped([read_measured(folder) for folder in single])) == ["gpt2", "rate=1e-3"]


def test_a_metric_may_have_hyphens(runs, tmp_path: Path, capsys) -> None:
    (folder,) = runs(("a", "bytes", 0, 2.0, None))
    line = {"step": 2, "scores": {"gsm-hard": 0.5}}
    (folder / "eval.jsonl").write_text(json.dumps(line))
    compare([folder], tmp_path / "c.svg", metric="scores.gsm-hard")
    assert "0.5000" in capsys.readouterr().out


def test_a_run_that_counts_no_tokens_has_no_such_axis(runs, tmp_path: Path) -> None:
    (folder,) = runs(("a", "bytes", 0, 2.0, None))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "bits_per_byte": 3.0}))
    with pytest.raises(SettingError, match="counted no tokens"):
        compare([folder], tmp_path / "new" / "c.svg", metric="bits_per_byte", over="tokens")
    assert not (tmp_path / "new").exists()
