"""Files that start a run on a cluster. All of them start the same command, which resumes the run,
so that a scheduler may start it again at any time. The run folder must be on a shared disk.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

Scheduler = Literal["slurm", "kubernetes", "skypilot", "ray"]
TORCHRUN = ("python", "-m", "culm.parallel.torchrun")
PORT = 29500
DISK = "/runs"  # where the files of Kubernetes and SkyPilot mount a disk for all machines
GRACE = 120  # seconds after SIGTERM, in which the run writes a checkpoint


@dataclass(frozen=True)
class Job:
    """run, settings: as in `culm train`. folder: of the run. ranks: processes on each machine, each
    with a GPU. nodes: machines. restarts: how often torchrun starts failed processes again. image:
    of a container with Culm.
    """

    run: str
    settings: tuple[str, ...]
    folder: str
    ranks: int
    nodes: int
    restarts: int
    image: str

    def torchrun(self, *meeting: str) -> list[str]:
        """Arguments of torchrun. meeting: how the machines find each other."""
        given = [self.run] if self.run else []
        return [
            "--shutdown-timeout", str(GRACE - 10),
            "--nnodes", str(self.nodes), "--nproc-per-node", str(self.ranks),
            "--max-restarts", str(self.restarts), *meeting,
            "-m", "culm", "train", *given, *self.settings,
        ]  # fmt: skip

    def command(self, host: str, job: str) -> str:
        """A line of shell. host, job: expressions of the shell, expanded on each machine."""
        meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST", "--rdzv-id", "JOB")
        line = shlex.join([*TORCHRUN, *self.torchrun(*meeting)])
        return line.replace(" HOST ", f' "{host}:{PORT}" ').replace(" JOB ", f' "{job}" ')

    def mounted(self) -> Job:
        """The same with its folder on the disk that a file mounts for all machines."""
        folder = f"{DISK}/{Path(self.folder).name}"
        return replace(self, folder=folder, settings=(*self.settings, f"folder={folder}"))

    @property
    def label(self) -> str:
        """A name that every scheduler takes."""
        return re.sub(r"[^a-z0-9]+", "-", f"culm-{Path(self.folder).name}".lower()).strip("-")[:50]


def job_file(job: Job, scheduler: Scheduler) -> str:
    """The text of a file for a scheduler."""
    match scheduler:
        case "slurm":
            return _slurm(job)
        case "kubernetes":
            return _yaml(
                _jobset(job.mounted()), f"kubectl apply -f FILE    (JobSet; image {job.image})"
            )
        case "skypilot":
            return _yaml(_skypilot(job.mounted()), "sky jobs launch FILE")
        case "ray":
            return _ray(job)


def _slurm(job: Job) -> str:
    return f"""#!/bin/bash
# sbatch FILE; started again, it resumes the run.
#SBATCH --job-name={job.label}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.ranks}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@{GRACE}

export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-8}}
started=$(mktemp)
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 {job.command("$host", "$SLURM_JOB_ID")} || failed=$?
# torchrun does not tell a run that stopped in time from one that failed; the run does.
status={shlex.quote(f"{job.folder}/status.json")}
if [ "$status" -nt "$started" ] && grep -q '"state": "interrupted"' "$status"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "${{failed:-0}}"
"""


def _jobset(job: Job) -> dict[str, Any]:
    first = f"{job.label}-workers-0-0.{job.label}"
    container = {
        "name": "culm",
        "image": job.image,
        "command": ["bash", "-c", job.command(first, job.label)],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": job.ranks}},
        "volumeMounts": [
            {"name": "runs", "mountPath": DISK},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": "culm-runs"}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    workers = {
        "parallelism": job.nodes, "completions": job.nodes, "backoffLimit": 0,
        "template": {"spec": pod},
    }  # fmt: skip
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.label},
        "spec": {
            "failurePolicy": {"maxRestarts": job.restarts},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": workers}}],
        },
    }


def _skypilot(job: Job) -> dict[str, Any]:
    host = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    return {
        "name": job.label,
        "num_nodes": job.nodes,
        "resources": {"accelerators": f"H100:{job.ranks}"},
        "workdir": ".",
        "file_mounts": {DISK: {"name": f"{job.label}-runs", "mode": "MOUNT"}},
        "setup": "pip install .",
        "run": f"host={host}\n{job.command('$host', '$SKYPILOT_TASK_ID')}\n",
    }


def _ray(job: Job) -> str:
    return f'''"""ray job submit --working-dir . -- python FILE; it resumes the run."""

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work():
    from culm.run.settings import read_run
    from culm.run.train import train

    train(read_run({job.run!r}, {list(job.settings)!r})[0])


TorchTrainer(
    work,
    scaling_config=ScalingConfig(num_workers={job.nodes * job.ranks}, use_gpu=True),
    run_config=RunConfig(name={job.label!r}, failure_config=FailureConfig({job.restarts})),
).fit()
'''


def _yaml(content: dict[str, Any], first: str) -> str:
    return f"# {first}\n" + yaml.safe_dump(content, sort_keys=False, width=1000)
