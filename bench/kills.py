"""Kill a run at random moments, again and again; its final weights must be those of a run that was
never stopped, bit for bit, and no checkpoint may ever be bad.

    python bench/kills.py --kills 100 --objectives sft dpo reward ppo gkd
    python bench/kills.py --kills 7 --objectives all

`all` is each kind of objective once. Each life is a fork of this process, which has everything
imported; it is killed with SIGKILL after a random time, most of them while checkpoints are written:
after every step, whole and sharded, in the foreground and in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from concept_stages import MODEL, SMALL, autoencoder_in, config_of, lcm, write_texts  # noqa: E402
from stages import CORE, STAGES, weights_in  # noqa: E402
from stages import corpora as corpora_of  # noqa: E402
from stages import stage as stage_of  # noqa: E402

from culm.config import parse  # noqa: E402
from culm.run.settings import RunConfig, read_run  # noqa: E402
from culm.run.train import train  # noqa: E402
from culm.train.checkpoint.folder import verify  # noqa: E402

NETWORKS = ("base", "one_tower", "two_tower", "quantized")
GRAPH = {"kind": "graph", "nodes": 8, "hops": [1, 2]}
CONCEPTS = ("concept_autoencoder", *NETWORKS, "coconut")
ALL = (*CORE, "diffusion", "kto", "grpo", "distill", *CONCEPTS)
FORMS = [
    {"form": form, "asynchronous": asynchronous}
    for form in ("whole", "sharded")
    for asynchronous in (False, True)
]


class Folders:
    """What the fixtures of the tests ask of pytest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root))


def concept_settings(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Of a tiny run of sentences or thoughts, with text that is made here."""
    write_texts(folder)
    more: dict[str, Any] = {"train.steps": steps, "eval.every_steps": "null"}
    if name in NETWORKS:
        autoencoder_in(folder)
        run = partial(config_of, folder)
        config = lcm(run, folder / "run", folder / "ae", name, **more)
    elif name == "coconut":
        small = {f"model.{key}": value for key, value in SMALL.items() if key != "context"}
        given = {**small, "model.context": 256, "data.questions": 40, "train.batch_size": 4, **more}
        given |= {"device": "cpu", "train.precision": "fp32", "data.tasks": [GRAPH]}
        given["train.objective"] = {"kind": "coconut", "stages": 2, "stage_steps": steps // 4}
        words = [f"{key}={json.dumps(v) if v != 'null' else v}" for key, v in given.items()]
        config = read_run("coconut", words)[0]
    else:
        config = config_of(folder, "concept-autoencoder", folder=folder / "run", **MODEL, **more)
    return config.model_dump(mode="json")


def live(settings: dict[str, Any], seconds: float | None) -> bool:
    """One life of a run; whether it came to its end. seconds: after which it is killed."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            train(parse(RunConfig, settings))
        except BaseException as error:
            os.dup2(1, 2)
            print(f"failed: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + (seconds or 600)
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"a life ended by itself with {status}")
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def torture(
    name: str, settings: dict[str, Any], folder: Path, kills: int, chance: random.Random
) -> str:
    """Gives a line of the table."""
    began = time.monotonic()
    live({**settings, "folder": str(folder / "whole")}, None)
    alone = time.monotonic() - began
    theirs = weights_in(folder / "whole")
    killed = rounds = leftovers = 0
    while killed < kills:
        rounds += 1
        now, last = folder / f"round-{rounds}", 0
        checkpoint = {"every_steps": 1, **FORMS[rounds % len(FORMS)]}
        trained = {**settings["train"], "checkpoint": checkpoint}
        given = {**settings, "train": trained, "folder": str(now)}
        while not live(given, chance.uniform(0, alone) if killed < kills else None):
            killed += 1
            progress, refused = verify(now)  # raises if all are bad
            if refused:
                raise SystemExit(f"{name}: {refused[0].path}: {refused[0].reason}")
            step = progress.step if progress else 0
            if step < last:
                raise SystemExit(f"{name}: went from step {last} back to {step}")
            last = step
            leftovers += any((now / "checkpoints").glob(".*"))
        ours = weights_in(now)
        if ours.keys() != theirs.keys() or any(
            not torch.equal(ours[key], value) for key, value in theirs.items()
        ):
            raise SystemExit(f"{name}: the weights differ after {killed} kills")
    return f"| {name} | {killed} | {rounds} | {leftovers} | 0 | equal |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of each objective")
    known = [*STAGES, *CONCEPTS, "all"]
    parser.add_argument("--objectives", nargs="*", default=list(CORE), choices=known)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folders = Folders(Path(temporary))
        corpora = corpora_of.__wrapped__(folders)
        stage = stage_of.__wrapped__(corpora, folders)
        print("| objective | kills | runs | kills that left half a checkpoint | bad | weights |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in ALL if "all" in given.objectives else given.objectives:
            if name in CONCEPTS:
                settings = concept_settings(name, folders.mktemp("texts"), given.steps)
            else:
                settings = stage(name, steps=given.steps)
            settings["eval"] = {"measures": {}}
            print(torture(name, settings, folders.mktemp(name), given.kills, chance), flush=True)


if __name__ == "__main__":
    main()
