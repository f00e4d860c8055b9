"""Whitening, clipping, forms, ensembles: by definition, on several ranks, and on bad values."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from answers import answered
from learning import build, refuse
from rolling import TOKENIZER, Rare, model, on_two_ranks, rollouts

from culm.adapt.heads import with_scalar_head
from culm.config import SettingError, parse
from culm.convert import native
from culm.objective.grpo import GRPO
from culm.parallel.ranks import Ranks
from culm.rollout.reward.ensemble import Ensemble
from culm.rollout.reward.format import FormatBonus
from culm.rollout.reward.model import ModelScore
from culm.rollout.reward.score import TaskScore
from culm.rollout.scoring import Scoring
from culm.run.settings import RunConfig
from culm.run.train_settings import TrainConfig
from culm.verbs.plan import show_plan

NAN = math.nan


def shaped(values: list[float], **settings) -> list[float]:
    scoring = Scoring([TaskScore(**settings)], refuse, 0)
    scales = scoring.scales({"task": values}, Ranks(), "cpu")
    return scoring.totals({"task": values}, scales)


def test_whitening_and_clipping_by_definition() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    wanted = [(x - mean) / deviation for x in values]
    assert shaped(values, whiten=True) == pytest.approx(wanted, abs=1e-7)
    assert shaped(values, clip=3.0, weight=2.0) == [2, 4, 6, 6]
    assert shaped([-9.0, 0.5], clip=3.0) == [-3, 0.5]
    both = shaped(values, whiten=True, clip=1.0, weight=0.5)
    assert both == pytest.approx([0.5 * max(-1, min(1, x)) for x in wanted], abs=1e-7)


def test_shaping_leaves_out_what_is_unscored() -> None:
    found = shaped([1.0, NAN, 3.0], whiten=True, clip=5.0)
    assert math.isnan(found[1])
    assert found[0] == -found[2] == pytest.approx(-math.sqrt(0.5))
    assert shaped([2.0, 2.0, 2.0], whiten=True) == [0, 0, 0]
    assert shaped([2.0], whiten=True) == [0]
    assert shaped([], whiten=True) == []
    assert all(map(math.isnan, shaped([NAN, NAN], whiten=True)))


def test_two_ranks_whiten_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the statistics of the whole batch, also what replaces groups in later rounds."""

    def played(ranks: Ranks):
        return rollouts(
            build(GRPO(), model(0)), 24, 24, ranks=ranks, tasks=(Rare(),), group=4, max_tokens=5,
            resample=8, reward=(TaskScore(whiten=True),),
        )._groups(0)  # fmt: skip

    whole, every = played(Ranks())
    raw = [x for group in every[: len(whole)] for x in group.parts["task"]]
    mean, deviation = statistics.fmean(raw), statistics.stdev(raw)
    assert len(every) > len(whole)  # some were replaced
    for group in whole:
        wanted = [(x - mean) / deviation for x in group.parts["task"]]
        assert group.rewards == pytest.approx(wanted, rel=1e-5)

    shares = on_two_ranks(monkeypatch, lambda ranks: played(ranks)[0])
    for one, other in zip(whole, [*shares[0], *shares[1]], strict=True):
        assert one.parts == other.parts
        assert one.rewards == pytest.approx(other.rewards, abs=1e-9)


def test_metrics_of_parts_are_unshaped() -> None:
    """Whitened, the mean of a reward would always be 0."""
    config = {"group": 4, "max_tokens": 5}
    objective = build(GRPO(), model(0))
    plain = rollouts(objective, 16, 16, **config).step(0)[0].metrics
    assert "reward_task" not in plain
    shaped = rollouts(
        objective, 16, 16, reward=(TaskScore(whiten=True, label="letters"),), **config
    )
    found = shaped.step(0)[0].metrics
    assert found["reward"] == pytest.approx(0, abs=1e-6)
    assert found["reward_letters"] == plain["reward"]


def test_a_bonus_for_a_form_is_for_the_whole_reply() -> None:
    bonus = FormatBonus(pattern=r"<think>.*</think>\s*\d+", bonus=0.2)
    replies = ["<think>a\nb</think> 42", "<think>a</think> 42!", " <think>a</think>42", "42", ""]
    given = [answered("q", reply) for reply in replies]
    assert bonus.build(refuse, 0)(given) == [0.2, 0, 0, 0, 0]
    with pytest.raises(SettingError, match=r"pattern: this is not a regular expression \(.*\)"):
        parse(TrainConfig, {"steps": 1, "reward": {"kind": "format", "pattern": "(a"}})


def test_an_ensemble_by_definition() -> None:
    def combined(scores: list[float], combine: str, k: float = 1.0) -> float:
        return Ensemble(paths=("a", "b"), combine=combine, k=k).combined(scores)

    assert combined([1.0, 2.0, 6.0], "mean") == 3
    assert combined([1.0, 2.0, 6.0], "min") == 1
    assert combined([1.0, 3.0], "deviation") == 1
    assert combined([1.0, 3.0], "deviation", 0.5) == 1.5
    assert combined([2.0, 2.0], "deviation", 9.0) == 2
    for combine in ("mean", "min", "deviation"):
        assert math.isnan(combined([NAN, 1.0], combine))
        assert math.isnan(combined([1.0, NAN], combine))
        assert math.isinf(combined([1.0, math.inf], combine))
    with pytest.raises(SettingError, match="a path is given twice"):
        parse(TrainConfig, {"steps": 1, "reward": {"kind": "ensemble", "paths": ["a", "b", "a"]}})


def test_an_ensemble_of_reward_models(tmp_path: Path) -> None:
    paths, given = [], [answered("Why?", reply) for reply in ("a", "bbb", "cc")]
    for seed in range(3):
        judge = model(seed)
        with_scalar_head(judge, seed)
        native.save(judge, TOKENIZER, tmp_path / str(seed))
        paths.append(str(tmp_path / str(seed)))
    asked = []

    def load(setting: str, path: str):
        asked.append(setting)
        return native.load(path)[0]

    each = [ModelScore(path=path).build(load, 0)(given) for path in paths]
    found = Ensemble(paths=paths, combine="min", batch_size=2).build(load, 0)(given)
    assert found == pytest.approx([min(scores) for scores in zip(*each, strict=True)], abs=1e-5)
    assert asked[3:] == ["train.reward.paths"] * 3


def test_the_heads_of_one_model_are_an_ensemble(tmp_path: Path) -> None:
    given = [answered("Why?", reply) for reply in ("a", "bbb", "cc")]
    many, one = model(0), model(0)
    with_scalar_head(many, 1, scores=3)
    with_scalar_head(one, 1)
    native.save(many, TOKENIZER, tmp_path / "many")
    loaded = {"many": native.load(tmp_path / "many")[0], "one": one}

    def load(setting: str, path: str):
        return loaded[path]

    rows = [torch.tensor([each.tokens]) for each in given]
    heads = [loaded["many"].head_scores(row)[0, -1].tolist() for row in rows]
    assert [len(each) for each in heads] == [3, 3, 3]
    found = Ensemble(paths=("many",), combine="min").build(load, 0)(given)
    assert found == pytest.approx([min(each) for each in heads], abs=1e-5)
    found = ModelScore(path="many").build(load, 0)(given)
    assert found == pytest.approx([sum(each) / 3 for each in heads], abs=1e-5)
    assert [loaded["many"].scores(row)[0, -1].item() for row in rows] == pytest.approx(found)
    both = Ensemble(paths=("many", "one"), combine="mean").build(load, 0)(given)
    alone = ModelScore(path="one").build(load, 0)(given)
    wanted = [(sum(each) + other) / 4 for each, other in zip(heads, alone, strict=True)]
    assert both == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(SettingError, match="one has one head, which is no ensemble"):
        Ensemble(paths=("one",)).build(load, 0)(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def score(completion, answer): return float(completion == answer)", None),
        ("def score(completion, solution): return 1.0", r"my\.py:1: score needs 'solution'"),
        ("def score(completion):\n    return 'yes'", r"my\.py:1: score gave 'yes' \(str\)"),
        ("def score(completion):\n    return missing", r"my\.py:2: score raised NameError"),
        ("def other(completion): return 1.0", r"my\.py has no function 'score'"),
    ],
)
def test_a_plan_loads_and_calls_the_function(
    text: str, message: str | None, stage: Callable[..., dict], tmp_path: Path, capsys
) -> None:
    (tmp_path / "my.py").write_text(text)
    settings = {**stage("grpo"), "folder": str(tmp_path / "run")}
    reward = {"kind": "function", "path": str(tmp_path / "my.py"), "name": "score"}
    settings["train"]["reward"] = [reward, "missing_eos"]
    config = parse(RunConfig, settings)
    if message is None:
        show_plan(config, {})
        out = capsys.readouterr().out
        assert "No problem found" in out
        assert "function, missing_eos" in out
        return
    with pytest.raises(SettingError, match=message):
        show_plan(config, {})


@pytest.mark.slow
def test_a_plan_misses_the_key_of_a_judge_and_asks_nothing(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("grpo"), "folder": str(tmp_path / "run")}
    judge = {"kind": "judge", "url": "http://127.0.0.1:9/v1", "model": "m", "api_key": "NO_KEY"}
    settings["train"]["reward"] = judge
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(SettingError, match=r"the environment variable NO_KEY is not set"):
        show_plan(parse(RunConfig, settings), {})
    monkeypatch.setenv("NO_KEY", "sk-secret")
    show_plan(parse(RunConfig, settings), {})
