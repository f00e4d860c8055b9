"""culm launch: several processes here, and files for schedulers."""

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from culm.config import SettingError
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train
from culm.verbs.launch import launch_run
from culm.verbs.launch_files import TORCHRUN, Job, job_file

JOB = Job("llm-v1", ("train.steps=10", "data.path=my books/*"), "runs/llm v1", 8, 4, 3, "culm:1")
COMMAND = (
    "--shutdown-timeout 110 --nnodes 4 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d "
    "--rdzv-endpoint {host} "
    "--rdzv-id {job} -m culm train llm-v1 train.steps=10 'data.path=my books/*'"
)


def test_slurm_starts_one_torchrun_on_each_machine(tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(job_file(JOB, "slurm"))
    tools = {
        "scontrol": 'test "$1" = show && printf "a1\\na2\\n" || echo "$*" >> '
        + str(tmp_path / "said"),
        "srun": 'printf "%s\\n" "$@"',
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "a[1-4]", "SLURM_JOB_ID": "77",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-u", str(file)], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    expected = shlex.split(COMMAND.format(host="a1:29500", job="77"))
    assert done.stdout.splitlines() == ["--kill-on-bad-exit=1", *TORCHRUN, *expected]
    assert "#SBATCH --nodes=4\n" in file.read_text()
    assert not (tmp_path / "said").exists()
    status = tmp_path / "runs" / "llm v1" / "status.json"
    status.parent.mkdir(parents=True)
    status.write_text('{"state": "interrupted", "step": 4}')
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 1\n")  # refused: the status is an old one
    done = subprocess.run(["bash", "-u", str(file)], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert not (tmp_path / "said").exists()
    (tmp_path / "srun").write_text(f"#!/bin/bash\nsleep 0.05; touch '{status}'\nexit 1\n")
    done = subprocess.run(["bash", "-u", str(file)], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert (tmp_path / "said").read_text() == "requeue 77\n"


def test_jobset_restarts_pods_that_meet_at_the_first() -> None:
    found = yaml.safe_load(job_file(JOB, "kubernetes"))
    spec = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert (spec["parallelism"], found["spec"]["failurePolicy"]) == (4, {"maxRestarts": 3})
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    line = shlex.split(container["command"][2])
    host = "culm-llm-v1-workers-0-0.culm-llm-v1:29500"
    expected = shlex.split(COMMAND.format(host=host, job="culm-llm-v1"))
    assert line == [*TORCHRUN, *expected, "folder=/runs/llm v1"]
    assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]


def test_skypilot_runs_the_command_on_each_machine() -> None:
    found = yaml.safe_load(job_file(JOB, "skypilot"))
    assert found["num_nodes"] == 4
    environment = {**os.environ, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_TASK_ID": "9"}
    shown = found["run"].replace(shlex.join(TORCHRUN), "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-euc", shown], env=environment, capture_output=True, text=True, check=True
    )
    expected = [*shlex.split(COMMAND.format(host="10.0.0.1:29500", job="9")), "folder=/runs/llm v1"]
    assert done.stdout.splitlines() == expected


def test_ray_trains_the_same_run() -> None:
    tree = ast.parse(job_file(JOB, "ray"))
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert f"read_run('llm-v1', {list(JOB.settings)})" in calls
    assert "ScalingConfig(num_workers=32, use_gpu=True)" in calls


def test_a_launched_run_is_the_run(run_file: Callable[..., Path]) -> None:
    file = run_file("sft", steps=2)
    done = subprocess.run(
        [sys.executable, "-c", "from culm.cli import main; main()", "launch", str(file),
         f"folder={file}-two", "--ranks", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Done: ") == 1  # one rank writes and says so
    config, _ = read_run(str(file))
    train(config)
    one, two = (read_lines(Path(f, "metrics.jsonl")) for f in (config.folder, f"{file}-two"))
    assert [a["loss"] for a in two] == pytest.approx([a["loss"] for a in one], abs=1e-5)


def test_what_cannot_be_launched_is_refused(run_file: Callable[..., Path]) -> None:
    file = str(run_file("sft"))
    with pytest.raises(SettingError, match="--for one of slurm, kubernetes, skypilot, ray"):
        launch_run(file, [], 2, 2, 0, None, "culm", None)
    with pytest.raises(SettingError, match="needs a multiple of 2 ranks, and there are 3"):
        launch_run(file, ["parallel.tensor=2"], 3, 1, 0, None, "culm", None)


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(
    run_file: Callable[..., Path],
) -> None:
    given = ([], 2, 1, 3, None, "culm", None)
    with pytest.raises(SettingError, match=r"train\.batch_size: 5 does not divide over 2 ranks"):
        launch_run(str(run_file("sft", batch_size=5, micro_batch_size=5)), *given)
    ramp = {"start": 1, "increment": 1, "steps": 2}
    with pytest.raises(SettingError, match=r"train\.batch_ramp: .* use multiples of 2"):
        launch_run(str(run_file("sft", batch_size=8, batch_ramp=ramp)), *given)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"pipeline": 2}, r"train\.micro_batch_size: a pipeline of 2 ranks needs as many"),
        ({"pipeline": 2, "pipeline_schedule": "interleaved"}, "a pipeline of 2 ranks needs as"),
    ],
)
def test_micro_batches_of_a_pipeline_are_refused_before_anything_starts(
    parallel: dict, message: str, run_file: Callable[..., Path]
) -> None:
    settings = [f"parallel.{name}={value}" for name, value in parallel.items()]
    with pytest.raises(SettingError, match=message):
        launch_run(str(run_file("sft", micro_batch_size=4)), settings, 2, 1, 3, None, "culm", None)


@pytest.mark.slow
def test_what_all_ranks_refuse_is_said_once_and_not_started_again(
    run_file: Callable[..., Path],
) -> None:
    """The model has no layers for a second stage of each rank: only the ranks see that."""
    file = run_file("sft", micro_batch_size=1)
    done = subprocess.run(
        [sys.executable, "-c", "from culm.cli import main; main()", "launch", str(file),
         "parallel.pipeline=2", "parallel.pipeline_schedule=interleaved", "--ranks", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 78, done.stderr[-3000:]
    assert done.stderr.count("2 layers do not divide over 4 stages") == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
