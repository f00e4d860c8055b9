"""The board's routes, and what it knows of runs."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from boarding import make_run, steps, write_lines
from starlette.testclient import TestClient

from culm.config import SettingError, parse
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train

pytest.importorskip("uplot", reason="uplot-python is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from culm.serve.board.app import build
from culm.serve.board.page.page import page
from culm.serve.board.run import Run
from culm.serve.board.runs import Runs, run_folders
from culm.serve.clients import KeyConfig, clients_of
from culm.train.status import read_status

HOSTILE = "<img src=x onerror=alert(1)>"


def run_of(folder):
    found = Run(folder)
    while found.read():
        pass
    return found


@pytest.fixture
def board(tmp_path):
    """A client of a board over `tmp_path`; `board.read()` reads what is new."""
    runs = Runs([tmp_path])
    client = TestClient(build(runs), base_url="http://localhost")
    client.read = runs.read
    while runs.read():
        pass
    return client


def listed(board):
    board.read()
    return {run["name"]: run for run in board.get("/runs").json()["runs"]}


# -- runs


def test_runs_are_found_at_any_depth_and_not_within_runs(tmp_path):
    for name in ("a", "sweep/1", "sweep/2", "sweep/2/checkpoints/copy", ".hidden/b"):
        make_run(tmp_path / name, steps(1))
    found = [str(path.relative_to(tmp_path)) for path in run_folders(tmp_path)]
    assert found == ["a", "sweep/1", "sweep/2"]
    assert list(run_folders(tmp_path / "a")) == [tmp_path / "a"]


def test_runs_of_one_name_have_more_of_their_path(tmp_path, board):
    for name in ("one/sft", "two/sft", "two/rl"):
        make_run(tmp_path / name, steps(1))
    assert set(listed(board)) == {"one/sft", "two/sft", "rl"}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"no folder .*nowhere"):
        Runs([tmp_path / "nowhere"])


@pytest.mark.parametrize("state", ["running", "finished", "interrupted", "failed"])
def test_the_state_is_that_of_the_status_file(tmp_path, state):
    make_run(tmp_path, steps(1), state=state)
    assert read_status(tmp_path)["state"] == state


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    make_run(tmp_path, steps(1), state="running", pid=process.pid)
    assert read_status(tmp_path)["state"] == "killed"
    elsewhere = json.loads((tmp_path / "status.json").read_text()) | {"host": "another"}
    (tmp_path / "status.json").write_text(json.dumps(elsewhere))
    assert read_status(tmp_path)["state"] == "running"
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == {"state": "unknown"}


def test_the_list_says_how_far_a_run_is(tmp_path, board):
    measured = [{"step": 2, "bits_per_byte": 1.25}, {"step": 4, "bits_per_byte": 1.5}]
    make_run(tmp_path / "a", steps(4), measured)
    one = listed(board)["a"]
    expected = {"state": "finished", "step": 4, "steps": 4, "loss": 1.0, "tokens": 400,
                "seconds": 2.0, "best": {"name": "bits_per_byte", "value": 1.25}, "read": 1.0,
                "damaged": 0, "problem": ""}  # fmt: skip
    assert {name: one[name] for name in expected} == expected


def test_what_can_be_wrong_with_a_run_is_said(tmp_path, board):
    (make_run(tmp_path / "broken", steps(1)) / "run.yaml").write_text("a: [")
    with (make_run(tmp_path / "damaged", steps(2)) / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    (make_run(tmp_path / "bytes", steps(1)) / "run.yaml").write_bytes(b"a: \xff")
    (make_run(tmp_path / "deep", steps(1)) / "eval.jsonl").write_text("[" * 100_000 + "\n")
    make_run(tmp_path / "empty", [])
    make_run(tmp_path / "gone", steps(2))
    make_run(tmp_path / "skipped", [{"step": 1, "loss": None, "tokens": 1, "seconds": None}])
    found = listed(board)
    assert "ParserError" in found["broken"]["problem"]
    assert "UnicodeDecodeError" in found["bytes"]["problem"]
    assert "Error" in found["deep"]["problem"]
    assert found["damaged"]["damaged"] == 1
    assert (found["empty"]["step"], found["empty"]["loss"]) == (None, None)
    assert (found["skipped"]["loss"], found["skipped"]["best"]) == (None, None)
    shutil.rmtree(tmp_path / "gone")
    gone = listed(board)["gone"]
    assert (gone["state"], gone["reason"]) == ("gone", "the folder is not there any more")
    assert gone["loss"] == 2.0  # what was read stays


# -- curves


def test_curves_of_steps_and_evaluations(tmp_path):
    lines = [{**line, "load.0": 1.5, "load.1": 0.5, "rate.matrix": 0.1} for line in steps(4)]
    scores = {"copy": {"value": 0.5, "low": 0.25, "high": 0.75, "items": 10}}
    measured = [{"step": 0, "loss": 5.0}, {"step": 2, "loss": 3.0, "scores": scores}]
    make_run(tmp_path, lines, measured)
    run = run_of(tmp_path)
    found = run.curves("step")
    assert set(found) == {
        "loss", "seconds", "rate", "load", "rate.matrix", "eval.loss", "scores.copy",
    }  # fmt: skip
    assert found["eval.loss"].x.tolist() == [0, 2]
    assert [part.tolist()[0] for part in found["load"]] == [1, 1, 0.5, 1.5]
    assert [part.tolist() for part in found["scores.copy"]] == [[2], [0.5], [0.25], [0.75]]
    assert run.curves("tokens")["loss"].x.tolist() == [100, 200, 300, 400]
    assert run.curves("tokens")["eval.loss"].x.tolist() == [0, 200]
    assert run.curves("seconds")["loss"].x.tolist() == [0.5, 1, 1.5, 2]
    assert run.curves("flops") == {}  # this run does not say


def test_flops_are_those_of_a_token(tmp_path):
    make_run(tmp_path, steps(2))
    starts = {"starts": [{}, {"flops_per_token": 1000.0}]}
    (tmp_path / "manifest.json").write_text(json.dumps(starts))
    assert run_of(tmp_path).curves("flops")["loss"].x.tolist() == [1e5, 2e5]


def test_only_what_changed_is_sent(tmp_path, board):
    make_run(tmp_path / "a", steps(3))
    one = listed(board)["a"]
    asked = {"run": f"{one['key']}@{one['version']}"}
    assert board.get("/curves", params=asked).json() == {}
    write_lines(tmp_path / "a" / "metrics.jsonl", steps(1, first=4), "a")
    board.read()
    found = board.get("/curves", params=asked).json()[one["key"]]
    assert found["curves"]["loss"] == {"x": [1, 2, 3, 4], "mean": [4, 2, 1.33333, 1]}
    assert found["version"] != one["version"]


def test_long_curves_are_reduced_and_parts_of_them_are_not(tmp_path, board):
    lines = steps(3000)
    lines[1234]["loss"] = 99.0
    make_run(tmp_path / "a", lines)
    asked = {"run": listed(board)["a"]["key"], "buckets": 100}
    (found,) = board.get("/curves", params=asked).json().values()
    loss = found["curves"]["loss"]
    assert len(loss["x"]) == 100
    assert max(loss["high"]) == 99
    part = board.get("/curves", params={**asked, "start": 1230, "end": 1240}).json()
    (found,) = part.values()
    assert found["curves"]["loss"]["x"] == list(range(1229, 1242))
    log = board.get("/curves", params={**asked, "log": True, "x": "tokens"}).json()
    (found,) = log.values()
    assert np.searchsorted(found["curves"]["loss"]["x"], 10_000) > 20  # early steps have room


def test_settings_that_differ_and_samples(tmp_path, board):
    said = {"samples": [{"prompt": HOSTILE, "temperature": 0.5, "text": "there"}]}
    one, two = {"train": {"rate": 0.1, "steps": 5}}, {"train": {"rate": 0.2, "steps": 5}}
    make_run(tmp_path / "a", steps(1), [{"step": 1, **said}, {"step": 2, "loss": 1.0}], **one)
    make_run(tmp_path / "b", steps(1), **two)
    keys = [run["key"] for run in listed(board).values()]
    found = board.get("/details", params={"run": keys}).json()
    rates = dict(zip(keys, ("0.1", "0.2"), strict=True))
    assert found["settings"] == [{"name": "train.rate", "values": rates}]
    sample = {"step": "1", "temperature": "0.5", "prompt": HOSTILE, "text": "there"}
    assert found["samples"] == {keys[0]: [sample], keys[1]: []}


def test_news_of_a_run_are_there_within_two_seconds(tmp_path):
    make_run(tmp_path / "a", steps(1))
    with TestClient(build(Runs([tmp_path])), base_url="http://localhost") as client:
        for count in (1, 2):
            begun = time.monotonic()
            while [run["step"] for run in client.get("/runs").json()["runs"]] != [count]:
                assert time.monotonic() - begun < 2
                time.sleep(0.02)
            write_lines(tmp_path / "a" / "metrics.jsonl", steps(1, first=2), "a")


def test_a_run_of_the_trainer_has_every_axis(stage, tmp_path):
    values = stage("sft", steps=4)
    values["eval"]["every_steps"] = 2
    train(parse(RunConfig, {**values, "folder": str(tmp_path)}))
    run = run_of(tmp_path)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert run.curves("step")["loss"].mean.tolist() == [line["loss"] for line in lines]
    assert run.curves("step")["eval.loss"].x.tolist() == [0, 2, 4]
    found = {axis: run.curves(axis)["loss"].x for axis in ("tokens", "seconds", "flops")}
    assert found["tokens"].tolist() == [line["tokens"] for line in lines]
    assert (np.diff(found["flops"]) / np.diff(found["tokens"]) > 1e3).all()
    assert run.summary()["state"] == "finished"


# -- who may ask, and what is safe


@pytest.mark.parametrize("asked", ["/curves?run=none", "/curves?run=../../etc"])
def test_unknown_runs_are_refused_in_words(board, asked):
    answer = board.get(asked)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404, "There is no such run on this board.",
    )  # fmt: skip


@pytest.mark.parametrize("asked", ["x=weight", "buckets=1", "smooth=7", "start=a"])
def test_other_questions_are_refused(board, asked):
    assert board.get(f"/curves?{asked}").status_code == 400


def test_other_sites_are_refused(board):
    assert board.get("/runs", headers={"Host": "evil.example"}).status_code == 403
    assert board.get("/runs", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_key_closes_all_but_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("BOARD_KEY", "secret")
    clients = clients_of([KeyConfig(name="me", env="BOARD_KEY")])
    client = TestClient(build(Runs([tmp_path]), clients, local=False))
    assert client.get("/").status_code == 200
    for path in ("/runs", "/curves", "/details"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_the_page_loads_nothing_else_and_makes_no_html_of_text():
    shown = page()
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    html = bytes(shown.body).decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert way not in html
    assert len(html) < 200_000


def test_the_page_has_the_licence_of_what_it_contains():
    html = bytes(page().body).decode()
    notice, plots = html.index("Permission is hereby granted"), html.index("var uPlot")
    assert notice < plots
    assert "Copyright (c) Leon Sorokin" in html
    assert "uPlot" in (Path(__file__).parents[2] / "THIRD_PARTY.md").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_hostile_names_are_plain_text(tmp_path, board):
    make_run(tmp_path / HOSTILE.replace("/", ""), [{**steps(1)[0], HOSTILE: 1.0}])
    (name,) = listed(board)
    answer = board.get("/runs")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert name == HOSTILE
