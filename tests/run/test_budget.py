"""Runs for a time: the law's optimum is proposed, and a tiny budget goes all the way."""

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from culm.compose import compose
from culm.config import SettingError, parse
from culm.exits import STOPPED
from culm.files import read_json, read_lines
from culm.model.transformer import TransformerConfig
from culm.plan.family import Family, resized
from culm.plan.model import ModelCost
from culm.plan.scaling import Law
from culm.plan.speed import Clock, Speed, speed_of
from culm.run.budget.ladder import best_rate, ladder_of
from culm.run.budget.micro_runs import MicroRun, MicroRuns, transferred
from culm.run.budget.proposal import MARGIN, choices
from culm.run.settings import read_run
from culm.verbs.plan_budget import pasted, seconds_of, show_budget

THETA = torch.tensor([math.log(0.6), 3.0, 5.0, 0.3, 0.4], dtype=torch.float64)
KNOWN = Law(THETA, THETA[None], 0.01)


class Plain(Family):
    """By formula, since counting takes long."""

    def cost(self, size):
        parameters = 12 * size.layers * size.width**2
        return ModelCost(parameters, 0, parameters, 1, 2.0 * parameters, 6.0 * parameters, 0)


def plain(name="nano", context=64):
    return Plain(parse(TransformerConfig, compose(name, "model").values), context)


def test_the_size_is_the_optimum_of_the_law():
    """In the family, next to the closed form."""
    sizes, clock, seconds = plain(), Clock(0.0, 1e12), 3600.0
    best, *others = choices(sizes, KNOWN, clock, seconds, unique=10**12)
    flops = sizes.cost(best.size).training_flops
    assert best.tokens == pytest.approx(MARGIN * seconds * 1e12 / flops)
    assert all(best.loss <= other.loss for other in others)
    parameters, _ = KNOWN.optimum(MARGIN * seconds * 1e12)
    assert sizes.parameters(best.size) == pytest.approx(parameters, rel=0.3)


def test_a_larger_model_where_text_would_be_read_too_often():
    sizes, clock = plain(), Clock(0.0, 1e12)
    much, little = (choices(sizes, KNOWN, clock, 3600, unique)[0] for unique in (10**12, 10**6))
    assert sizes.parameters(little.size) > sizes.parameters(much.size)
    assert little.loss > much.loss


def test_a_clock_is_the_line_through_what_was_measured():
    clock = Clock.measured([1e6, 2e6, 4e6], [2e-6, 3e-6, 5e-6])
    assert (clock.fixed, clock.rate) == pytest.approx((1e-6, 1e12))
    assert Clock.measured([1e6, 2e6], [3e-6, 2e-6]).fixed == 0


def test_rates_are_tried_until_one_is_the_best():
    tried = []

    def loss(rate):
        tried.append(rate)
        return math.log(rate / 0.05) ** 2

    rate, inside = best_rate(loss, 0.002)
    assert inside
    assert rate == pytest.approx(0.05)
    assert len(tried) == 6
    assert best_rate(lambda rate: -rate, 1.0) == (pytest.approx(3.0**4), False)


def test_a_rate_with_which_a_run_diverges_is_not_the_best():
    """Nor a point of the parabola."""
    losses = {-1: 2.0, 0: 1.0, 1: math.nan}
    found = best_rate(lambda rate: losses[round(math.log(rate, 3))], 1.0)
    assert found == (pytest.approx(1.0), True)


def test_rates_of_other_widths():
    config = read_run("demo")[0]
    assert transferred(0.01, config, 64, 256) == pytest.approx(0.005)  # Muon: the root
    adamw = read_run("demo", ["train.optimizer=adamw"])[0]
    assert transferred(0.01, adamw, 64, 256) == pytest.approx(0.0025)
    dial = read_run("depth", ["model.depth=2"])[0]
    assert transferred(0.01, dial, 64, 256) == 0.01  # its rule is in the model


def test_micro_runs_cost_no_more_than_their_share_and_are_chosen_once(tmp_path):
    config = read_run("demo", ["train.context=128"])[0]
    sizes = plain("demo", 128)
    fast, slow = (Speed(rate, lambda model: 0.0) for rate in (1e11, 1e9))
    first = ladder_of(config, sizes, 7200, fast, 1e11, tmp_path)
    assert first.seconds <= 300
    widths = [model.width for model in first.models]
    assert widths == sorted(set(widths))
    assert ladder_of(config, sizes, 7200, slow, 1e9, tmp_path) == first
    assert {one.tokens for one in first.grid(config, 0.01)} == set(first.tokens)
    with pytest.raises(SettingError, match="--budget: the smallest micro-runs would take"):
        ladder_of(config, sizes, 1, slow, 1e9, tmp_path)


def test_small_steps_cost_more_than_their_flops(tmp_path):
    """An update and the start of the operations, which are nearly all of a micro-run's time."""
    config = read_run("demo", ["train.context=32"])[0]
    sizes = plain("demo", 32)
    free, real = (Speed(1e12, lambda model, each=each: each) for each in (0.0, 0.02))
    assert ladder_of(config, sizes, 90, free, 1e12, tmp_path / "free").seconds < 30
    with pytest.raises(SettingError, match="the smallest micro-runs would take 54 seconds"):
        ladder_of(config, sizes, 90, real, 1e12, tmp_path / "real")
    cpu, rule = torch.device("cpu"), config.train.optimizer
    overhead = speed_of(sizes.model, rule, cpu, "fp32", 32).overhead
    small, large = (overhead(resized(sizes.model, width)) for width in (64, 192))
    assert 1e-4 < small < large


def test_a_budget_that_pays_for_nothing_is_refused_before_the_data(tmp_path):
    """Whose preparation may take hours: here there are none, and nobody notices."""
    settings = [f"data.path={tmp_path / 'none.txt'}", f"folder={tmp_path / 'run'}"]
    with pytest.raises(SettingError, match="--budget: the smallest micro-runs would take"):
        show_budget("demo", read_run("demo", settings)[0], "1s")
    assert not (tmp_path / "run-budget").exists()


@pytest.mark.parametrize("text", ["2", "h", "2 hours", "0m", "-1h", ""])
def test_a_budget_is_a_time(text):
    with pytest.raises(SettingError, match="--budget: expected a time such as 30m, 2h or 1d"):
        seconds_of(text)
    assert [seconds_of(one) for one in ("90s", "30m", "1.5h", "1d")] == [90, 1800, 5400, 86400]


def test_a_run_that_starts_from_a_model_has_no_size_to_propose():
    config = read_run("sft", ["start=runs/x"])[0]
    with pytest.raises(SettingError, match="--budget: it proposes the size of a new model"):
        MicroRuns(config)


def write_texts(folder):
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "in", "ot", "ul")]
    chance = random.Random(0)
    folder.mkdir()
    for n in range(200):
        (folder / f"{n}.txt").write_text(" ".join(chance.choices(words, k=300)))


def lines_of(folder):
    """How many steps the newest micro-run has made, and its folder."""
    files = [path for path in folder.glob("w*/metrics.jsonl") if path.parent.is_dir()]
    newest = max(files, key=lambda path: path.stat().st_ctime, default=None)
    return (0, None) if newest is None else (len(read_lines(newest)), newest.parent)


def test_a_micro_run_that_is_stopped_continues(tmp_path, capsys):
    """By Ctrl-C; its loss is that of one which was not stopped, and its time that of both parts."""
    write_texts(tmp_path / "text")
    settings = [
        f"data.path={tmp_path / 'text'}", "train.context=32", "data.held_out=0.1",
        "eval.measures={held_out: {tokens: 2000}, samples: null}", "device=cpu",
        "tokenizer=bytes", "model={base: nano, vocabulary: 256, width: 32, layers: 1}",
        "model.attention={kind: gqa, heads: 4}", "model.mlp={kind: swiglu, hidden: 64}",
    ]  # fmt: skip
    done = []
    for name in ("whole", "parts"):
        config, _ = read_run("demo", [*settings, f"folder={tmp_path / name}"])
        micro = MicroRuns(config)
        micro.prepare()
        run = MicroRun(micro.model, 40_000, 0.005)
        if name == "parts":
            with pytest.raises(SystemExit) as stopped, interrupted(micro.folder, steps=3):
                micro.result(run, 32)
            assert stopped.value.code == STOPPED
            said = " ".join(capsys.readouterr().err.split())
            assert f"{micro.folder} keeps the micro-runs so far; the same command contin" in said
            steps, folder = lines_of(micro.folder)
            assert steps >= 3
            assert not (folder / "results.json").exists()
        done.append(micro.result(run, 32))
        said = " ".join(capsys.readouterr().err.split())
        assert ("interrupted before; it continues" in said) == (name == "parts")
        assert (f"after step {steps}" in said) if name == "parts" else True
        assert micro.result(run, 32) == done[-1]
        assert "trained before; its result is read." in capsys.readouterr().err
        [seconds] = [read_json(path)["seconds"] for path in micro.folder.glob("w*/seconds.json")]
        [metrics] = [read_lines(path) for path in micro.folder.glob("w*/metrics.jsonl")]
        assert seconds > sum(line["seconds"] for line in metrics)
    whole, parts = done
    assert (parts.loss, parts.tokens) == (whole.loss, whole.tokens)


def is_training(folder):
    """Whether the newest micro-run has made some of its steps."""
    steps, newest = lines_of(folder)
    return steps >= 3 and not (newest / "seconds.json").exists()


@contextmanager
def interrupted(folder, steps):
    """Ctrl-C once the newest micro-run has so many steps."""
    ended = threading.Event()

    def wait():
        while lines_of(folder)[0] < steps:
            if ended.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


BUDGET = "5m"  # micro-runs take at least 2,100 steps


def small_settings(folder):
    """One layer, and AdamW, since an update of Muon takes most of so small a step."""
    return [
        f"data.path={folder / 'text'}", f"folder={folder / 'run'}", "train.context=32",
        "eval.measures={held_out: {tokens: 2000}, samples: null}", "data.held_out=0.1",
        "train.optimizer=adamw", "model.layers=1",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_budget_that_is_interrupted_continues(number, tmp_path):
    """The command line; a micro-run that was finished before is not trained again."""
    write_texts(tmp_path / "text")
    command = [  # a process of a job in the background ignores Ctrl-C
        sys.executable, "-c",
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from culm.cli import main; main()", "plan", "demo", "--budget", BUDGET,
        *small_settings(tmp_path),
    ]  # fmt: skip
    folder = tmp_path / "run-budget"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(list(folder.glob("w*/seconds.json"))) < 2 or not is_training(folder):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        said = " ".join(process.communicate(timeout=60)[1].split())
    if number == signal.SIGINT:
        assert process.returncode == STOPPED
        assert f"{folder} keeps the micro-runs so far; the same command continues" in said
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("w*/seconds.json")}
    assert len(finished) >= 2
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "Proposal" in again.stdout
    assert again.stderr.count("trained before; its result is read.") >= len(finished)
    assert "interrupted before; it continues." in again.stderr
    assert all(path.stat().st_mtime_ns == was for path, was in finished.items())


@pytest.mark.slow
def test_a_tiny_budget_goes_all_the_way(tmp_path, capsys):
    write_texts(tmp_path / "text")
    settings = small_settings(tmp_path)
    found = show_budget("demo", read_run("demo", settings)[0], BUDGET)
    out = capsys.readouterr().out
    assert "Proposal" in out
    assert found.proposal.low < found.proposal.loss < found.proposal.high
    proposed, _ = read_run(str(tmp_path / "run-budget" / "proposal.yaml"))
    assert proposed == found.proposal.config
    *others, _ = settings  # the layers are among what is pasted
    again, _ = read_run("demo", [*others, *pasted(proposed)])
    assert again.model == proposed.model
    assert again.train.steps == proposed.train.steps
    stamps = {path: path.stat().st_mtime for path in (tmp_path / "run-budget").glob("w*/model")}
    show_budget("demo", read_run("demo", settings)[0], BUDGET)
    assert stamps == {
        path: path.stat().st_mtime for path in (tmp_path / "run-budget").glob("w*/model")
    }
