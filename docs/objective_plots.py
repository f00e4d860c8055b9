"""Draws the plots of docs/objectives from runs of a tiny model on tasks with letters.

    python docs/objective_plots.py [page ...]

Every run is kept in runs/objectives/ and trained once (remove its folder to train it again); on one
CPU core all of them take a few minutes. The model reads bytes and has 2 layers. It learns to write
2 to 4 letters backwards, for distillation the text of Python's own modules.
"""

from __future__ import annotations

import email
import inspect
import json
import json.encoder
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["SOURCE_DATE_EPOCH"] = "0"  # the same curves give the same file

import matplotlib as mpl

from culm.config import parse
from culm.eval.plots import Points, lines
from culm.eval.report import curve
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train
from culm.task.letters import Letters

mpl.rcParams |= {"svg.hashsalt": "culm", "svg.fonttype": "none"}

IMAGES = Path(__file__).parent / "images"
RUNS = Path("runs/objectives")
TASK = {
    "kind": "letters", "name": "reverse", "operation": "reverse", "shortest": 2, "longest": 4,
}  # fmt: skip
TASKS = f"data.tasks={json.dumps([TASK])}"
MODEL = (
    "start=null",
    "tokenizer={kind: bytes, specials: true}",
    "model={vocabulary: 262, width: 64, layers: 2, context: 64, "
    "attention: {kind: gqa, heads: 4, qk_norm: head}}",
)
UNMEASURED = ("eval.measures.held_out=null", "eval.measures.scores=null")


def run(name: str, verb: str, *settings: str) -> Path:
    """The folder of `culm train VERB SETTINGS`, which is trained if it is not there."""
    folder = RUNS / name
    if not (folder / "results.json").exists():
        own = (f"folder={folder}", "device=cpu", "train.precision=fp32")
        if not train(read_run(verb, [*own, *settings])[0]).finished:
            sys.exit(f"{folder}: interrupted; the same command resumes it")
    return folder


def records(name: str, count: int, write: Callable[[str, str, random.Random], dict]) -> str:
    """The path of a file with a record for each question and its right answer."""
    task, chance = parse(Letters, TASK), random.Random(0)
    questions = [task.question("train", number, 0) for number in range(count)]
    path = RUNS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [json.dumps(write(one.prompt, one.answer, chance)) + "\n" for one in questions]
    path.write_text("".join(written))
    return str(path)


def mistaken(answer: str, chance: random.Random) -> str:
    """A wrong answer to the same question: one letter is another one."""
    letters = answer.split()
    place = chance.randrange(len(letters))
    letters[place] = chance.choice([x for x in "abcdefghijklmnopqrstuvwxyz" if x != letters[place]])
    return " ".join(letters)


def pair(prompt: str, answer: str, chance: random.Random) -> dict[str, str]:
    return {"prompt": prompt, "chosen": answer, "rejected": mistaken(answer, chance)}


def maybe_swapped(prompt: str, answer: str, chance: random.Random) -> dict[str, str]:
    """The control: half of the pairs have their answers the wrong way round."""
    one = pair(prompt, answer, chance)
    if chance.random() < 0.5:
        one["chosen"], one["rejected"] = one["rejected"], one["chosen"]
    return one


def muon(rate: float) -> str:
    """Takes so small a model to its aim in fewer steps than AdamW, the usual choice."""
    return f"train.optimizer={{kind: muon, rate: {rate}}}"


def start() -> str:
    """What preferences and reinforcement start from: a model that is right in half of the cases."""
    folder = run(
        "sft", "sft", *MODEL, *UNMEASURED, TASKS, "data.turns=1", "data.questions=20000",
        "train.steps=190", "train.batch_size=16", muon(5e-3),
    )  # fmt: skip
    return f"start={folder}"


def of_metrics(folder: Path, *names: str) -> dict[str, Points]:
    return {name: curve(read_lines(folder / "metrics.jsonl"), name) for name in names}


def next_token() -> dict[str, Points]:
    def write(prompt: str, answer: str, chance: random.Random) -> dict[str, str]:
        return {"prompt": prompt, "completion": answer}

    folder = run(
        "few", "sft", *MODEL, f"data.path={records('few', 150, write)}", "data.tasks=[]",
        "data.format=chat", "data.held_out=0.3", "eval.every_steps=10",
        "eval.measures.scores=null", "eval.measures.held_out.tokens=1000", "train.steps=400",
        "train.batch_size=4", muon(5e-3),
    )  # fmt: skip
    return {
        "nll of what it learns from": of_metrics(folder, "nll")["nll"],
        "nll of unseen questions": curve(read_lines(folder / "eval.jsonl"), "loss"),
    }


def masked_diffusion() -> dict[str, Points]:
    """The text is Python's own, a few dozen files of it: read often."""

    def trained(name: str, verb: str) -> Points:
        folder = run(
            name, verb, *MODEL, "data.split=paragraphs", f"data.path={Path(json.__file__).parent}",
            "data.held_out=0.2", "eval.measures.held_out.tokens=3000", "eval.every_steps=50",
            "train.steps=1500", "train.batch_size=16", muon(5e-3),
        )  # fmt: skip
        return curve(read_lines(folder / "eval.jsonl"), "bits_per_byte")

    return {
        "next_token": trained("text-next-token", "pretrain"),
        "masked_diffusion, an upper bound": trained("text-masked-diffusion", "diffusion"),
    }


def reward() -> dict[str, Points]:
    def trained(name: str, write: Callable[[str, str, random.Random], dict]) -> Points:
        folder = run(
            name, "reward", start(), f"data.path={records(name, 3000, write)}", "data.held_out=0.1",
            "eval.every_steps=10", "train.steps=300", muon(5e-3),
        )  # fmt: skip
        measured = curve(read_lines(folder / "eval.jsonl"), "accuracy")
        return [(step, accuracy["value"]) for step, accuracy in measured]  # without its interval

    return {
        "accuracy of unseen pairs": trained("reward", pair),
        "control, half of the pairs swapped": trained("reward-swapped", maybe_swapped),
    }


def preference() -> dict[str, Points]:
    folder = run(
        "dpo", "dpo", start(), f"data.path={records('dpo', 3000, pair)}", "data.held_out=0",
        *UNMEASURED, muon(5e-4),
    )  # fmt: skip
    return of_metrics(folder, "margin", "reward_chosen", "reward_rejected")


def ppo() -> dict[str, Points]:
    folder = run(
        "ppo", "ppo", start(), TASKS, *UNMEASURED, "train.rollout.max_tokens=12",
        "train.steps=80", "train.objective.value_weight=0.5", muon(2e-3),
    )  # fmt: skip
    return of_metrics(folder, "reward", "kl")


def grpo() -> dict[str, Points]:
    def trained(name: str, *settings: str) -> Points:
        folder = run(
            name, "grpo", start(), TASKS, *UNMEASURED, "train.rollout.max_tokens=12",
            "train.steps=60", muon(1e-3), *settings,
        )  # fmt: skip
        return of_metrics(folder, "reward")["reward"]

    return {
        "reward": trained("grpo"),
        "control, shuffled rewards": trained("grpo-shuffled", "train.rollout.shuffled=true"),
    }


def distill() -> dict[str, Points]:
    """The text is Python's own: much for the teacher, little for the student."""
    much, little = Path(email.__file__).parent, RUNS / "little.txt"
    little.write_text(inspect.getsource(json.encoder))
    both = (*MODEL, "data.split=paragraphs", "eval.measures.held_out.tokens=3000", muon(5e-3))
    teacher = run("teacher", "pretrain", *both, f"data.path={much}", "train.steps=500")

    def trained(name: str, verb: str, *settings: str) -> Points:
        folder = run(
            name, verb, *both, f"data.path={little}", "data.held_out=0.5", "eval.every_steps=10",
            "train.steps=200", "train.batch_size=16", "train.schedule=constant", *settings,
        )  # fmt: skip
        return curve(read_lines(folder / "eval.jsonl"), "loss")

    return {
        "distilled": trained("distilled", "distill", f"train.objective.teacher={teacher}"),
        "next_token on the same text": trained("alone", "pretrain"),
    }


# Pages, with what the vertical axis measures.
PLOTS: dict[str, tuple[Callable[[], dict[str, Points]], str]] = {
    "next_token": (next_token, "nats per token"),
    "masked_diffusion": (masked_diffusion, "held-out bits per byte"),
    "reward": (reward, "accuracy"),
    "preference": (preference, "nats, times beta"),
    "ppo": (ppo, "mean reward; nats"),
    "grpo": (grpo, "mean reward"),
    "distill": (distill, "held-out nats per token"),
}


def main(*pages: str) -> None:
    for page in pages or PLOTS:
        curves, unit = PLOTS[page]
        lines(IMAGES / f"{page}.svg", curves(), "step", unit)


if __name__ == "__main__":
    main(*sys.argv[1:])
