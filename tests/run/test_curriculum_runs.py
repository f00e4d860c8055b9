"""Runs with a curriculum: what they log, store, resume and refuse, and what a plan says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stages import untimed, weights_in

from culm.config import SettingError, parse
from culm.convert.load import load_model
from culm.data.order import Graded
from culm.data.pack import cut
from culm.data.prepared import Prepared
from culm.engine.scoring import score
from culm.files import read_lines
from culm.parallel.ranks import Ranks
from culm.run.assemble import assemble, training_batches
from culm.run.difficulty import NAME
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.plan import show_plan

EVERY = {"every_steps": 2}
Stage = Callable[..., dict]


class Alone(Ranks):
    """One of several ranks, without the others."""

    def wait(self) -> None: ...


def settings(stage: Stage, folder: Path, curriculum: dict, **more) -> RunConfig:
    run = stage("sft", **more)
    run["data"]["curriculum"] = {"steps": 3, **curriculum}
    return parse(RunConfig, {**run, "folder": str(folder)})


def by_loss(stage: Stage) -> dict:
    return {"difficulty": {"kind": "loss", "model": stage("sft")["start"]}}


def facts(folder: Path) -> list[dict]:
    return [untimed(line) for line in read_lines(folder / "metrics.jsonl")]


def plan(config: RunConfig, capsys) -> str:
    show_plan(config, {})
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["competence", "baby_steps", "one_pass"])
def test_a_run_resumes_exactly_within_and_after_it(kind: str, stage: Stage, tmp_path: Path) -> None:
    strategy: dict = {"kind": kind} | ({} if kind == "competence" else {"buckets": 2})
    more = {"strategy": strategy, "hardest_first": kind == "one_pass"}

    def run(folder: str, steps: int) -> None:
        train(settings(stage, tmp_path / folder, more, steps=steps, checkpoint=EVERY))

    run("one", 6)
    for steps in (3, 4, 6):
        run("two", steps)
    assert facts(tmp_path / "two") == facts(tmp_path / "one")
    competences = [line["competence"] for line in facts(tmp_path / "one")]
    assert competences == sorted(competences)
    assert competences[0] < 1
    assert competences[3:] == [1, 1, 1]
    one, two = (weights_in(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_other_curricula_are_refused_on_resume(stage: Stage, tmp_path: Path) -> None:
    train(settings(stage, tmp_path / "run", {}, steps=4))
    with pytest.raises(SettingError, match=r"data\.curriculum\.steps: 2, but .* trained with 3"):
        train(settings(stage, tmp_path / "run", {"steps": 2}, steps=6))


def test_the_loss_of_a_reference_is_computed_once_and_stored(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a forward of each example alone."""
    config = settings(stage, tmp_path / "run", by_loss(stage), steps=4)
    train(config)
    corpus = Prepared.open(tmp_path / "run" / "data")
    examples = cut(corpus.offsets, 64, "truncate")
    with np.load(tmp_path / "run" / NAME) as stored:
        losses = stored["losses"]
    model, _ = load_model(stage("sft")["start"])
    for number in (0, 7, len(losses) - 1):
        ids, learned = corpus.read(examples.starts[number], examples.ends[number])
        [found] = score(model.eval(), [ids.tolist()])
        expected = -found[torch.from_numpy(learned[1:].copy())].mean()
        assert losses[number] == pytest.approx(float(expected), rel=1e-4)

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("culm.run.difficulty.reference_losses", refuse)
    run = config.model_dump()
    train(parse(RunConfig, {**run, "train": {**run["train"], "steps": 6}}))
    config = parse(RunConfig, run)
    folder = tmp_path / "run"
    shares = [
        training_batches(assemble(config, folder, torch.device("cpu"), Alone(rank, 2, rank == 0)))
        for rank in range(2)
    ]
    whole = training_batches(assemble(config, folder, torch.device("cpu")))
    assert {share.fingerprint for share in shares} == {whole.fingerprint}
    assert isinstance(whole.order, Graded)
    assert list(whole.order.difficulty) == sorted(whole.order.difficulty)


def test_losses_of_another_corpus_or_model_are_computed_again(stage: Stage, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(Path(stage("sft")["start"]) / "model", reference)
    by = {"difficulty": {"kind": "loss", "model": str(reference)}}
    config = settings(stage, tmp_path / "run", by, steps=4)
    train(config)
    (tmp_path / "run" / NAME).write_bytes(b"damaged")
    assert train(settings(stage, tmp_path / "run", by, steps=5)).finished
    show_plan(settings(stage, tmp_path / "run", by, steps=6), {})
    other = stage("sft", steps=2)
    other["folder"] = str(tmp_path / "other")
    train(parse(RunConfig, other))
    shutil.rmtree(reference)
    shutil.copytree(tmp_path / "other" / "model", reference)
    for start in (lambda run: show_plan(run, {}), train):
        with pytest.raises(SettingError, match=r"difficulty\.model=\S+reference: not what"):
            start(settings(stage, tmp_path / "run", by, steps=6))


def test_with_text_of_an_earlier_stage(stage: Stage, tmp_path: Path) -> None:
    text = stage("pretrain", steps=1)
    train(parse(RunConfig, {**text, "folder": str(tmp_path / "text")}))
    run = stage("sft", batch_size=8, steps=4)
    words = {"corpus": str(tmp_path / "text" / "data"), "weight": 0.2}
    run["data"] |= {"mix": [{"weight": 0.8}, words]}
    run["data"] |= {"curriculum": {"steps": 3}}
    train(parse(RunConfig, {**run, "folder": str(tmp_path / "run")}))
    competences = [line["competence"] for line in facts(tmp_path / "run")]
    assert competences[0] == pytest.approx(0.05)
    assert competences[-1] == 1


@pytest.mark.parametrize(
    "name", ["pretrain", "dpo", "precomputed", "kto", "ranking", "steps", "distill"]
)
def test_every_corpus_may_have_one(name: str, stage: Stage, tmp_path: Path) -> None:
    run = stage(name, steps=2)
    run["data"]["curriculum"] = {"steps": 2, "difficulty": "rarity"}
    train(parse(RunConfig, {**run, "folder": str(tmp_path / "run")}))
    assert facts(tmp_path / "run")[0]["competence"] == pytest.approx(0.05)


def test_levels_of_records(stage: Stage, tmp_path: Path, capsys) -> None:
    """Read by the plan, and by the run; a corpus that was prepared without them is refused."""
    file = tmp_path / "levels.jsonl"
    lines = [
        {"prompt": f"q{n}", "completion": "yes" * (n % 5), "level": n % 5} for n in range(1, 60)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = stage("sft", steps=3)
    run["data"]["path"] = str(file)
    by = {"kind": "field", "name": "level"}
    config = parse(RunConfig, {**run, "folder": str(tmp_path / "plain")})
    train(config)
    run["data"]["curriculum"] = {"steps": 3, "difficulty": by, "strategy": "baby_steps"}
    run["data"]["curriculum"]["strategy"] = {"kind": "baby_steps", "buckets": 2}
    config = parse(RunConfig, {**run, "folder": str(tmp_path / "run")})
    shown = plan(config, capsys)
    assert "curriculum baby_steps by field, easiest first" in shown
    assert "step 1 reads 50.0 % of the rows, and all steps after 3 read all" in shown
    assert "difficulty 0, " in shown
    train(config)
    data = {"prepared": str(tmp_path / "plain" / "data"), "curriculum": run["data"]["curriculum"]}
    config = parse(RunConfig, {**run, "data": data, "folder": str(tmp_path / "again")})
    with pytest.raises(SettingError, match=r"difficulty\.name: .* prepared without a field"):
        train(config)


@pytest.mark.slow
def test_a_plan_of_a_reference_loads_it_and_computes_nothing(
    stage: Stage, tmp_path: Path, capsys
) -> None:
    config = settings(stage, tmp_path / "run", by_loss(stage), steps=4)
    assert "losses of the reference model, computed when the run starts" in plan(config, capsys)
    assert not (tmp_path / "run").exists()
    missing = {"difficulty": {"kind": "loss", "model": str(tmp_path / "none")}}
    config = settings(stage, tmp_path / "run", missing, steps=4)
    for start in (lambda: show_plan(config, {}), lambda: train(config)):
        with pytest.raises(SettingError, match=r"data\.curriculum\.difficulty\.model: "):
            start()


@pytest.mark.slow
def test_a_plan_of_a_reference_packs_as_the_run_does(stage: Stage, tmp_path: Path, capsys) -> None:
    """Text is cut into full windows without a curriculum, and packed in whole documents with it."""
    run = stage("pretrain", steps=1)
    shown = []
    for curriculum in (None, {"steps": 1, **by_loss(stage)}, {"steps": 1, "difficulty": "rarity"}):
        run["data"]["curriculum"] = curriculum
        said = plan(parse(RunConfig, {**run, "folder": str(tmp_path / "run")}), capsys)
        shown.append(float(said.split("packing rows of 64 tokens, ")[1].split()[0]))
    assert shown[1] == pytest.approx(shown[2], abs=3)
    assert shown[0] > shown[1] + 3


def test_a_reference_reads_whole_examples(stage: Stage, tmp_path: Path) -> None:
    """One of a shorter context is refused, as it never learned the positions behind its end."""
    short = stage("pretrain", steps=1)
    short["model"] = {**short["model"], "context": 16}
    train(parse(RunConfig, {**short, "folder": str(tmp_path / "short")}))
    by = {"difficulty": {"kind": "loss", "model": str(tmp_path / "short")}, "steps": 1}
    run = stage("pretrain", steps=1)
    run["data"]["curriculum"] = by
    with pytest.raises(SettingError, match=r"reads 16 tokens, and an example has \d+; use a model"):
        train(parse(RunConfig, {**run, "folder": str(tmp_path / "run")}))


def test_what_cannot_be_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.curriculum\.steps: 3 steps are more than"):
        settings(stage, tmp_path, {}, steps=2)
    run = stage("grpo")
    run["data"]["curriculum"] = {"steps": 2}
    with pytest.raises(SettingError, match=r"data\.curriculum: grpo asks questions without end"):
        parse(RunConfig, {**run, "folder": str(tmp_path)})
