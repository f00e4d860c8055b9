"""Runs on a small tree through the command line: train, resume, evaluate, inspect."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from culm.cli import app
from culm.compose import read_yaml
from culm.config import SettingError
from culm.exits import Refused
from culm.graph.embedding import EmbeddingConfig
from culm.graph.folder import NamedPoints, load_points, save_points
from culm.verbs.any_run import read_any_run
from culm.verbs.graph import show_graph_plan
from culm.verbs.train import train_run


@pytest.fixture
def edges(tmp_path: Path) -> Path:
    path = tmp_path / "edges.tsv"
    lines = [f"n{node}\tn{(node - 1) // 2}\n" for node in range(1, 31)]
    path.write_text("".join(lines))
    return path


def settings(edges: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"data.path={edges}", f"folder={folder}", "train.batch_size=64", "train.negatives=10",
        "device=cpu", *more,
    ]  # fmt: skip


def plan_run(name: str, given: list[str]) -> None:
    show_graph_plan(*read_any_run(name, given))  # type: ignore[arg-type]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("geometry", ["poincare", "lorentz", "euclidean"])
def test_a_tree_is_learned(edges: Path, tmp_path: Path, geometry: str) -> None:
    run = tmp_path / "run"
    more = ["train.steps=120", "train.schedule=constant", "train.optimizer.rate=0.1"]
    train_run("poincare", settings(edges, run, f"model.geometry={geometry}", *more))
    first = json.loads((run / "eval.jsonl").read_text().splitlines()[0])
    assert first["map"]["value"] < 0.4
    assert results(run)["map"]["value"] > 0.75
    assert results(run)["mean_rank"] < 2
    assert read_yaml(run / "run.yaml")["kind"] == "graph"
    assert "loss" in (run / "report.md").read_text()


def test_resumed_is_the_same_bit_for_bit(edges: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = "train.schedule={kind: constant, warmup: 0}"
    train_run("poincare", settings(edges, whole, schedule, "train.steps=12"))
    train_run("poincare", settings(edges, parts, schedule, "train.steps=5"))
    train_run("poincare", settings(edges, parts, schedule, "train.steps=12"))
    one, other = (load_points(folder).model.points for folder in (whole, parts))
    assert torch.equal(one, other)
    given = settings(edges, parts, schedule, "train.steps=12", "train.negatives=3")
    other_negatives = [one for one in given if one != "train.negatives=10"]
    with pytest.raises(Refused, match=r"train\.negatives: 3, but"):
        train_run("poincare", other_negatives)
    plan_run("poincare", settings(edges, parts, schedule, "train.steps=20"))
    edges.write_text(edges.read_text() + "n99\tn3\n")
    for start in (train_run, plan_run):
        with pytest.raises((Refused, SettingError), match="was trained on other edges"):
            start("poincare", settings(edges, parts, schedule, "train.steps=20"))


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Also with marks that end a line elsewhere than in a file."""
    names = ("a\u2028b", "c\x0bd\x85e", "f\x1cg")
    points = NamedPoints(EmbeddingConfig(dimension=2).build(3), names)
    save_points(points, tmp_path / "points")
    assert load_points(tmp_path / "points").names == names


def test_learned_curvature_moves(edges: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run("poincare", settings(edges, run, "model.learned_curvature=true", "train.steps=40",
                                   "train.optimizer.rate=0.05"))  # fmt: skip
    model = load_points(run).model
    assert abs(model.manifold.c(model.points).item() - 1) > 0.05
    assert model.manifold.distance(model.points[0], model.points).isfinite().all()


def test_verbs_of_a_trained_run(edges: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run("poincare", settings(edges, run, "train.steps=20"))
    runner = CliRunner()

    def output(*arguments: str) -> str:
        done = runner.invoke(app, list(arguments))
        assert done.exit_code == 0, done.exception
        return done.output

    assert "31" in output("inspect", str(run))
    assert len(output("inspect", str(run), "--near", "n3").splitlines()) == 10
    output("inspect", str(run), "--disc", "--format", "svg")
    assert (run / "disc.svg").stat().st_size > 1000
    found = json.loads(output("eval", str(run), "--json"))
    assert found["map"]["value"] == pytest.approx(results(run)["map"]["value"])
    assert "epochs" in output("plan", "poincare", f"data.path={edges}", f"folder={tmp_path / 'x'}")
    for arguments, message in (
        (("inspect", str(run), "--near", "n77"), "n77: no such node"),
        (("inspect", str(run), "--disc", "--format", "svg"), "already exists"),
        (("eval", str(run), "--text", str(edges)), "text: the model has points of a graph"),
        (("eval", str(run), "--suite", "chat"), "suite: the model has points of a graph"),
        (("inspect", str(run), "--attention", "a"), "attention: neither this nor logit-lens"),
        (("generate", str(run), "text"), "points of a graph and no language model"),
    ):
        refused = runner.invoke(app, list(arguments))
        assert message in str(refused.exception)


def test_settings_that_are_refused(edges: Path, tmp_path: Path) -> None:
    for more, message in (
        (["model.geometry=euclidean", "model.curvature=2"], "model.curvature: flat space has none"),
        (["data.cycles=keep"], "data.closure: it needs a graph without circles"),
        (["model.width=3"], "model.width: no such setting"),
        (["train.optimizer=adamw"], "train.optimizer: adamw takes straight steps"),
        (["train.optimizer={kind: riemannian_sgd, ema: 0.9}"], "ema: an average of points"),
    ):
        with pytest.raises(Refused, match=message):
            train_run("poincare", settings(edges, tmp_path / "run", "train.steps=1", *more))


def mammals(edges: Path, folder: Path, geometry: str, rate: float, seed: int) -> float:
    """MAP after 1,500 steps in five dimensions."""
    run = folder / f"{geometry}-{rate}-{seed}"
    train_run("poincare", [
        f"data.path={edges}", f"folder={run}", f"seed={seed}", "device=cpu", "data.closure=false",
        "train.steps=1500", "train.batch_size=256", "train.negatives=20",
        f"model.geometry={geometry}", f"train.optimizer.rate={rate}",
        "train.schedule={kind: linear, warmup: 0.05, final: 0.1}", "eval.every_steps=null",
    ])  # fmt: skip
    return results(run)["map"]["value"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mammals_need_hyperbolic_space(shared, tmp_path: Path) -> None:
    """Three seeds, each geometry with the best of three rates by another seed."""
    edges, found = shared("wordnet/mammal_closure.tsv"), {}
    for geometry in ("poincare", "euclidean"):
        grid = {r: mammals(edges, tmp_path, geometry, r, seed=1000) for r in (0.1, 0.3, 1.0)}
        best = max(grid, key=lambda rate: grid[rate])
        found[geometry] = [mammals(edges, tmp_path, geometry, best, seed) for seed in range(3)]
    assert min(found["poincare"]) > max(found["euclidean"]) + 0.10
