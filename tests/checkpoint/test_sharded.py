"""Any layout loads any other, and nothing is loaded that DCP alone would let pass."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed.checkpoint as dcp
import yaml
from learning import build
from safetensors.torch import load_file
from stages import go
from torch import Tensor

from culm.config import SettingError
from culm.files import read_lines
from culm.objective.next_token import NextToken
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW
from culm.optim.rule import RuleOptimizer
from culm.parallel.ranks import Ranks
from culm.train.checkpoint.folder import Progress, path_of, verify
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.checkpoint.store import CheckpointStore
from culm.train.checkpoint.tensors import CheckpointError

TESTS = Path(__file__).parents[1]
SHARDED = CheckpointConfig(form="sharded")
STATE = {"rollout": torch.arange(6).reshape(2, 3), "empty": torch.zeros(0, 2)}


def ignore(path: Path) -> None:
    """Nobody listens."""


def trained(seed: int = 0, steps: int = 2) -> tuple[Objective, RuleOptimizer]:
    objective = build(NextToken(), tiny.model(seed))
    optimizer = AdamW(rate=0.01).build(objective)
    for _ in range(steps):
        objective(tiny.rows()).mean(tiny.rows().counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective, optimizer


def tensors_of(objective: Objective, optimizer: RuleOptimizer) -> dict[str, Tensor]:
    names = {p: n for n, p in objective.named_parameters()}
    states = {
        f"{names[p]}|{key}": value for p, s in optimizer.state.items() for key, value in s.items()
    }
    return {**dict(objective.named_parameters()), **states}


@pytest.mark.parametrize(("written", "read"), [("whole", "sharded"), ("sharded", "whole")])
def test_each_form_is_read_whatever_form_is_written(
    written: str, read: str, tmp_path: Path
) -> None:
    objective, optimizer = trained()
    store = CheckpointStore(tmp_path, objective, optimizer, CheckpointConfig(form=written))
    store.save(Progress(2, 7, "data", {"a": "b"}, {"c": 1}), STATE, ignore)
    again, fresh = trained(seed=1, steps=0)
    found = CheckpointStore(tmp_path, again, fresh, CheckpointConfig(form=read)).load()
    assert found is not None
    assert found[0] == Progress(2, 7, "data", {"a": "b"}, {"c": 1})
    assert found[1].keys() == STATE.keys()
    for name, value in STATE.items():
        assert torch.equal(found[1][name], value)
        assert found[1][name].dtype == value.dtype
    ours, theirs = tensors_of(again, fresh), tensors_of(objective, optimizer)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("kind", ["flipped", "truncated", "gone", "no metadata", "mixed"])
def test_damage_that_dcp_does_not_notice(kind: str, tmp_path: Path) -> None:
    objective, optimizer = trained()
    store = CheckpointStore(tmp_path, objective, optimizer, SHARDED)
    for step in (1, 2):
        store.save(Progress(step, 0, "x"), {}, ignore)
    place = path_of(tmp_path, 2)
    data = place / "__0_0.distcp"
    match kind:
        case "flipped":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
            with pytest.warns(UserWarning, match="single process"):
                dcp.load({}, checkpoint_id=place, no_dist=True)  # says nothing
        case "truncated":
            data.write_bytes(data.read_bytes()[:-100])
        case "gone":
            data.unlink()
        case "no metadata":
            (place / ".metadata").unlink()
        case "mixed":
            content = bytearray((path_of(tmp_path, 1) / ".metadata").read_bytes())
            content[-1] ^= 1
            (place / ".metadata").write_bytes(content)
    found = CheckpointStore(tmp_path, objective, optimizer, SHARDED).load()
    assert found is not None
    assert found[0].step == 1
    assert not place.exists()
    assert place.with_name("damaged-step-2").is_dir()


@pytest.mark.parametrize("form", ["whole", "sharded"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dtype", r"\S+: torch\.bfloat16 in the run, torch\.float32 in the checkpoint"),
        ("shape", r"shape \(.*32.*\) in the run, \(.*16.*\) in the checkpoint"),
        ("more", r"extra\.weight: only the checkpoint has it"),
        ("fewer", r"extra\.weight: only the run's model has it"),
    ],
)
def test_a_checkpoint_of_another_model(
    form: Any, change: str, message: str, tmp_path: Path
) -> None:
    """DCP casts the first, and ignores the third."""
    objective, optimizer = trained()
    again, _ = trained(seed=1, steps=0)
    extra = {"more": objective, "fewer": again}.get(change)
    if extra is not None:
        extra.extra = torch.nn.Linear(2, 2, bias=False)
    if change == "dtype":
        again.bfloat16()
    if change == "shape":
        config = again.model.config.model_copy(update={"width": 32})
        again = build(NextToken(), config.build(0))
    settings = CheckpointConfig(form=form)
    CheckpointStore(tmp_path, objective, optimizer, settings).save(
        Progress(2, 0, "x"), {}, ignore
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(tmp_path, again, AdamW().build(again), settings).load()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, optimizer = trained()
    store = CheckpointStore(tmp_path, objective, optimizer, SHARDED)
    store.save(Progress(1, 0, "x"), {}, ignore)

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
        with pytest.raises(CheckpointError, match=r"rank 0: .*No space left on device.*make room"):
            store.save(Progress(2, 0, "x"), {}, ignore)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    progress, refused = verify(tmp_path)
    assert progress is not None
    assert (progress.step, refused) == (1, [])


def test_what_is_copied_is_of_its_step(tmp_path: Path) -> None:
    """For a save in the background: the run goes on meanwhile."""
    objective, optimizer = trained()
    before = {name: value.clone() for name, value in tensors_of(objective, optimizer).items()}
    for form in ("whole", "sharded"):
        store = CheckpointStore(tmp_path, objective, optimizer, CheckpointConfig(form=form))
        captured = store.form.capture({}, Ranks(), copy=True)
        with torch.no_grad():
            for value in tensors_of(objective, optimizer).values():
                value.add_(1)
        for key, value in captured.items():
            assert torch.equal(value, before[key.partition(".")[2]]), (form, key)
        with torch.no_grad():
            for name, value in tensors_of(objective, optimizer).items():
                value.copy_(before[name])


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
import torch.distributed as distributed
from torch.distributed.tensor import DTensor
from culm.objective.next_token import NextToken
from culm.optim import adamw, adamw8bit, muon, adafactor, galore
from culm.parallel.launch import process_group
from culm.parallel.parallelize import parallelize, ParallelConfig
from culm.dtensor import full_tensor
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.checkpoint.store import CheckpointStore
from learning import build
import tiny
torch.set_num_threads(1)

RULES = {{
    "adamw": adamw.AdamW(rate=0.01), "muon": muon.Muon(rate=0.01),
    "adamw8bit": adamw8bit.AdamW8bit(rate=0.01), "adafactor": adafactor.Adafactor(rate=0.01),
    "galore": galore.GaLore(rate=0.01, rank=4),
}}

def parts(rule, ranks):
    objective = build(NextToken(), tiny.model())
    parallel = parallelize(objective, ranks, ParallelConfig(data="fsdp"))
    return objective, parallel, RULES[rule].build(objective)

def step(parallel, optimizer):
    batch = tiny.rows()
    parallel.gradients([batch], dict(batch.counts))
    optimizer.step()
    optimizer.zero_grad()

with process_group("cpu") as ranks:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    for rule in sys.argv[3:]:
        objective, parallel, optimizer = parts(rule, ranks)
        stores = {{
            form: CheckpointStore(folder / rule / form, objective, optimizer,
                                  CheckpointConfig(form=form), ranks)
            for form in ("sharded", "whole")
        }}
        assert CheckpointStore(folder, objective, optimizer, ranks=ranks).form.name == "sharded"
        if mode == "write":
            step(parallel, optimizer)
            for form, store in stores.items():
                state = {{"rollout": torch.full((3,), 7)}}
                store.save(Progress(1, 0, "x"), state, lambda path: None)
        else:
            progress, state = stores["sharded"].load()
            assert (progress.step, state["rollout"].tolist()) == (1, [7, 7, 7])
            out = CheckpointStore(folder / rule / mode, objective, optimizer,
                                  CheckpointConfig(form="whole"), ranks)
            out.save(progress, state, lambda path: None)
"""


def on_ranks(count: int, script: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, "--standalone", str(script), *arguments],
        capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def script_in(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    paths = [str(TESTS), str(TESTS / "objective"), str(TESTS.parent)]
    path.write_text(text.format(paths=paths))
    return path


@pytest.mark.slow
def test_resharding_keeps_every_bit(tmp_path: Path) -> None:
    """Two ranks write, four and one read: parameters and states of each rule, with shards that are
    unequal, and empty ones.
    """
    rules = ("adamw", "muon", "adamw8bit", "adafactor", "galore")
    script = script_in(tmp_path, SCRIPT)
    on_ranks(2, script, str(tmp_path), "write", *rules)
    on_ranks(4, script, str(tmp_path), "four", *rules)
    on_ranks(2, script, str(tmp_path), "two", *rules)
    for rule in rules:
        files = [
            load_file(tmp_path / rule / form / "checkpoints" / "step-1" / "state.safetensors")
            for form in ("whole", "two", "four")
        ]
        assert any(name.startswith("optimizer.") for name in files[0])
        for other in files[1:]:
            assert other.keys() == files[0].keys(), rule
            for name, value in files[0].items():
                assert torch.equal(other[name], value), (rule, name)
                assert other[name].dtype == value.dtype
        names = {path.name for path in (tmp_path / rule / "sharded/checkpoints/step-1").iterdir()}
        assert names == {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.json"}


STAGES = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from torch import nn
from culm.batch import Loss
from culm.objective.next_token import NextToken
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW
from culm.parallel.launch import process_group
from culm.parallel.ranks import Ranks
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.checkpoint.store import CheckpointStore
import tiny
torch.set_num_threads(1)

class Stage(Objective):  # as in a pipeline: each rank holds some parts, under their global names
    def __init__(self, numbers):
        super().__init__(None)
        self.parts = nn.ModuleDict()
        for number in numbers:
            torch.manual_seed(number)
            self.parts[str(number)] = nn.Linear(3, 3)

    def loss(self, batch, context):
        raise NotImplementedError

def stage(numbers):
    objective = Stage(numbers)
    optimizer = AdamW(rate=0.1).build(objective)
    return objective, optimizer

def values(objective):
    return {{name: p.detach().clone() for name, p in objective.named_parameters()}}

folder, mode = Path(sys.argv[1]), sys.argv[2]
with process_group("cpu") as ranks:
    if mode == "write":
        objective, optimizer = stage([0, 1] if ranks.process == 0 else [2, 3])
        for p in objective.parameters():
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
        store = CheckpointStore(folder, objective, optimizer, ranks=ranks)
        assert store.form.name == "sharded"
        try:
            CheckpointStore(folder, objective, optimizer, CheckpointConfig(form="whole"), ranks)
            raise AssertionError
        except ValueError as error:
            assert "ranks hold different weights" in str(error)
        store.save(Progress(1, 0, "x"), {{}}, lambda path: None)
        torch.save(values(objective), folder / f"{{ranks.process}}.pt")
        # Other stages, and one more than there was.
        objective, optimizer = stage([3] if ranks.process == 0 else [0, 1, 2])
        for p in objective.parameters():
            nn.init.zeros_(p)
        CheckpointStore(folder, objective, optimizer, ranks=ranks).load()
        assert len(optimizer.state) == len(list(objective.parameters()))
        torch.save(values(objective), folder / f"again-{{ranks.process}}.pt")
        objective, optimizer = stage([0] if ranks.process == 0 else [1, 2])
        try:
            CheckpointStore(folder, objective, optimizer, ranks=ranks).load()
            raise AssertionError
        except RuntimeError as error:
            assert "parts.3.bias: only the checkpoint has it" in str(error), error
    else:
        objective, optimizer = stage(range(4))
        CheckpointStore(folder, objective, optimizer, ranks=ranks).load()
        torch.save(values(objective), folder / "one.pt")
"""


@pytest.mark.slow
def test_ranks_that_hold_different_names(tmp_path: Path) -> None:
    script = script_in(tmp_path, STAGES)
    on_ranks(2, script, str(tmp_path), "write")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "read"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = {**torch.load(tmp_path / "0.pt"), **torch.load(tmp_path / "1.pt")}
    for files in (("again-0.pt", "again-1.pt"), ("one.pt",)):
        found = {name: v for file in files for name, v in torch.load(tmp_path / file).items()}
        assert found.keys() == written.keys()
        assert all(torch.equal(found[name], value) for name, value in written.items())


def test_whole_tensors_that_no_rank_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    objective, optimizer = trained(steps=0)
    monkeypatch.setattr("culm.train.checkpoint.store.names_differ", lambda *_: True)
    with pytest.raises(SettingError, match=r"train\.checkpoint\.form: ranks hold different"):
        CheckpointStore(tmp_path, objective, optimizer, CheckpointConfig(form="whole"))
    assert CheckpointStore(tmp_path, objective, optimizer).form.name == "sharded"


@pytest.mark.slow
def test_a_run_moves_between_layouts(stage: Callable[..., dict], tmp_path: Path) -> None:
    """One rank, two ranks sharded, four, and one again: the same steps as on one."""
    runs = TESTS / "parallel" / "ranks.py"
    files = []
    for name in ("pretrain", "sft"):
        settings = stage(name, adapter=name == "sft", steps=8, batch_size=8, micro_batch_size=2)
        settings["parallel"] = {"data": "fsdp"}
        settings["train"]["checkpoint"] = {"every_steps": 1}
        for kind in ("one", "moved"):
            settings["folder"] = str(tmp_path / f"{name}-{kind}")
            file = tmp_path / f"{name}-{kind}.yaml"
            file.write_text(yaml.safe_dump(settings))
        files.append((settings, file))
        go({**settings, "folder": str(tmp_path / f"{name}-one")})
        go(settings, steps=2)
    on_ranks(2, runs, *(f"{file},train.steps=4" for _, file in files))
    on_ranks(4, runs, *(f"{file},train.steps=6" for _, file in files))
    for settings, _ in files:
        go(settings)
        folder = Path(settings["folder"])
        one = Path(str(folder).replace("moved", "one"))
        lines = [read_lines(path / "metrics.jsonl") for path in (one, folder)]
        for a, b in zip(*lines, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-5), (folder.name, a["step"])
