"""A run that was killed ends as if it had never stopped, bit for bit."""

import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from stages import EVERY_STAGE, ON_POLICY, untimed, weights_in
from torch import nn

from culm.adapt.lora import adapters_of
from culm.batch import Batch, Loss
from culm.config import parse
from culm.convert import native
from culm.files import read_json, read_lines
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW
from culm.parallel.parallelize import Parallel
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig
from culm.run.train import Result, train
from culm.train.checkpoint.folder import Progress, steps_in
from culm.train.checkpoint.store import CheckpointStore
from culm.train.events import Event, Stepped
from culm.train.guard import Interruption
from culm.train.listeners import MetricsFile
from culm.train.run_folder import MANIFEST

EVERY = {"every_steps": 2}


def run(settings: dict[str, Any], folder: Path, **more: Any) -> Result:
    trained = {**settings["train"], **more}
    return train(parse(RunConfig, {**settings, "train": trained, "folder": str(folder)}))


def facts(folder: Path) -> list[dict]:
    return [untimed(line) for line in read_lines(folder / "metrics.jsonl")]


def assert_equal(one: Path, two: Path) -> None:
    assert facts(two) == facts(one)
    assert (two / "eval.jsonl").read_text() == (one / "eval.jsonl").read_text()
    weights = [weights_in(folder) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_killed_and_resumed_is_never_stopped(
    name: str, adapter: bool, stage: Callable[..., dict], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed after the line of step 5 was written, with a checkpoint of step 4; of PPO both lie
    within the first rollout.
    """
    settings = stage(name, adapter=adapter, steps=7, checkpoint=EVERY)
    settings["eval"]["every_steps"] = 3
    if adapter:
        settings["train"]["adapter"] = {**settings["train"]["adapter"], "dropout": 0.2}
    run(settings, tmp_path / "one")
    start = read_json(tmp_path / "one" / MANIFEST)["starts"][-1]
    assert name in (*ON_POLICY, "gkd") or start["flops_per_token"] > 0
    child = os.fork()
    if child == 0:
        write = MetricsFile.__call__

        def write_and_die(self: MetricsFile, event: Event) -> None:
            write(self, event)
            if isinstance(event, Stepped) and event.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(MetricsFile, "__call__", write_and_die)
        run(settings, tmp_path / "two")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert steps_in(tmp_path / "two") == [2, 4]
    assert facts(tmp_path / "two")[-1]["step"] == 5
    assert run(settings, tmp_path / "two").finished
    assert_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_stopped_where_it_measures_and_resumed(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stage("sft", steps=6, checkpoint=EVERY)
    settings["eval"]["every_steps"] = 2
    run(settings, tmp_path / "one")
    write = MetricsFile.__call__

    def write_and_ask(self: MetricsFile, event: Event) -> None:
        write(self, event)
        if isinstance(event, Stepped) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # so that the run stops after step 4

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "__call__", write_and_ask)
        stopped = run(settings, tmp_path / "two")
    assert (stopped.finished, stopped.steps) == (False, 4)
    assert [line["step"] for line in read_lines(tmp_path / "two" / "eval.jsonl")] == [0, 2]
    assert run(settings, tmp_path / "two").finished
    assert_equal(tmp_path / "one", tmp_path / "two")


def test_one_micro_batch_is_on_the_device_at_a_time(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    move, forward = Batch.to, Parallel._forward

    def moving(self: Batch, device: Any) -> Batch:
        events.append("move")
        return move(self, device)

    def computing(self: Parallel, batch: Batch, last: bool) -> Any:
        events.append("forward")
        return forward(self, batch, last)

    monkeypatch.setattr(Batch, "to", moving)
    monkeypatch.setattr(Parallel, "_forward", computing)
    config = parse(RunConfig, {**stage("sft", steps=1), "folder": str(tmp_path / "run")})
    train(config)
    first = [n for n, event in enumerate(events) if event == "forward"][1] - 1  # after the trial
    assert events[first : first + 4] == ["move", "forward"] * 2


def test_a_step_is_as_it_is_whatever_the_micro_rows(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Resumed with other micro-batches: the same rows in the same steps."""
    settings = stage("dpo", steps=4, checkpoint=EVERY)
    run(settings, tmp_path / "one")
    run(settings, tmp_path / "two", steps=2)
    run(settings, tmp_path / "two", micro_batch_size=1)
    for a, b in zip(facts(tmp_path / "one"), facts(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)


def test_recomputed_blocks_give_the_same(stage: Callable[..., dict], tmp_path: Path) -> None:
    """Also under the same names: the run may go on without recomputation."""
    settings = stage("grpo", adapter=True, steps=4, checkpoint=EVERY)
    run(settings, tmp_path / "one")
    run(settings, tmp_path / "two", activation_checkpointing="full", steps=2)
    run(settings, tmp_path / "two", activation_checkpointing="selective", steps=3)
    run(settings, tmp_path / "two")
    assert facts(tmp_path / "two") == facts(tmp_path / "one")


def test_more_steps_and_a_finished_run_again(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = stage("sft", steps=4)
    run(settings, tmp_path / "one")
    before = (tmp_path / "one" / "results.json").read_text()
    run(settings, tmp_path / "one")
    after = (tmp_path / "one" / "results.json").read_text()
    assert json.loads(before)["seconds"] == json.loads(after)["seconds"]
    run(settings, tmp_path / "two", steps=2)
    run(settings, tmp_path / "two", steps=4)
    assert facts(tmp_path / "two") == facts(tmp_path / "one")


def test_a_half_written_line_is_forgotten(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = stage("sft", steps=4, checkpoint=EVERY)
    run(settings, tmp_path / "one")
    run(settings, tmp_path / "two", steps=2)
    with (tmp_path / "two" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0, "tok')
    run(settings, tmp_path / "two")
    assert facts(tmp_path / "two") == facts(tmp_path / "one")


def test_every_line_says_what_is_promised(stage: Callable[..., dict], tmp_path: Path) -> None:
    run(stage("pretrain", steps=3), tmp_path / "run")
    tokens = 0
    for number, line in enumerate(read_lines(tmp_path / "run" / "metrics.jsonl"), start=1):
        assert line["step"] == number
        assert line["loss"] > 0
        assert line["tokens"] > tokens
        assert line["seconds"] > 0
        assert line["rate"] == 0.01
        groups = {name: value for name, value in line.items() if name.startswith("rate.")}
        assert {"rate.orthogonal", "rate.embedding"} <= groups.keys()
        assert set(groups.values()) == {0.01}
        assert line["grad_norm"] > 0
        tokens = line["tokens"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_a_whole_step(
    number: signal.Signals, stage: Callable[..., dict], tmp_path: Path
) -> None:
    """The command itself: it saves, says how to go on, and has a code for each kind of signal."""
    settings = {**stage("sft", steps=100_000), "folder": str(tmp_path / "run")}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "culm", "train", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    metrics = tmp_path / "run" / "metrics.jsonl"
    while len(read_lines(metrics)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}[number], said
    assert "the same command resumes it" in said
    stopped = facts(tmp_path / "run")
    assert steps_in(tmp_path / "run") == [stopped[-1]["step"]]
    again = run(settings, tmp_path / "run", steps=len(stopped) + 2)
    assert again.finished
    assert facts(tmp_path / "run")[: len(stopped)] == stopped
    assert len(facts(tmp_path / "run")) == len(stopped) + 2


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_trained_critic_is_written_and_a_further_run_starts_from_it(
    adapter: bool, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = stage("ppo", adapter=adapter, steps=2)
    run(settings, tmp_path / "one")
    critic = native.load(tmp_path / "one" / "critic")[0]
    assert critic.config.head == "scalar"
    assert not adapters_of(critic)
    objective = {
        **settings["train"].get("objective", {}),
        "critic": str(tmp_path / "one" / "critic"),
    }
    assert run(settings, tmp_path / "two", objective={"kind": "ppo", **objective}).finished


class Averaged(Objective):
    """Next-token training with a moving average of the weights."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.average = copy.deepcopy(model).requires_grad_(False)

    def moving(self) -> tuple[nn.Module, ...]:
        return (self.average,)

    def loss(self, batch: Batch, context: Context) -> Loss:
        raise NotImplementedError


def test_a_checkpoint_holds_what_moves_without_gradients(tmp_path: Path) -> None:
    objective = Averaged(tiny.model())
    optimizer = AdamW().build(objective)
    with torch.no_grad():
        objective.average.embed.weight.mul_(3)
    CheckpointStore(tmp_path, objective, optimizer).save(Progress(1, 0, "x"), {}, lambda path: None)
    again = Averaged(tiny.model())
    CheckpointStore(tmp_path, again, AdamW().build(again)).load()
    assert torch.equal(again.average.embed.weight, objective.average.embed.weight)
    assert torch.equal(again.model.embed.weight * 3, again.average.embed.weight)


def test_sharded_weights_are_written_without_the_backend_of_the_gpu(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gathered into models on the CPU, where flash attention would be refused."""

    def gathered(model: nn.Module, ranks: Ranks) -> dict[str, Any]:
        def refused(*_: object, **__: object) -> None:
            raise AssertionError("placed again")

        monkeypatch.setattr("culm.run.objective.place", refused)
        return model.state_dict()

    settings = stage("ppo", steps=1)
    run(settings, tmp_path / "plain")
    monkeypatch.setattr("culm.run.whole.needs_others", lambda model, ranks: True)
    monkeypatch.setattr("culm.run.whole.state_of", gathered)
    run(settings, tmp_path / "sharded")
    assert_equal(tmp_path / "plain", tmp_path / "sharded")


def test_a_signal_within_a_message_is_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Python refuses to write to a stream again within a write."""

    class Writing(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(sys, "stderr", Writing())
    with Interruption().watching() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption()
    assert "Stopping after this step; press Ctrl-C again" in capfd.readouterr().err
