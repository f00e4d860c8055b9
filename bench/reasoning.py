"""Reinforcement learning on small reasoning tasks, from models that Culm trained: a table.

    python bench/reasoning.py [countdown|word_problem] --seeds 3

A model of about 0.8 million parameters over bytes learns a task by fine-tuning, which is stopped
early; GRPO goes on from there, with the score of the task as the reward. The control gets the same
rewards in random order. pass@1, of the most likely reply (greedy) and of one that is sampled at
temperature 1: on 1,000 questions whose content is in no training, with its 95 % interval.

countdown: an expression of three numbers with a given value. word_problem: stories in the manner of
GSM8K, of two steps, answered with their working.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from learning_rl import trained

from culm.config import parse
from culm.convert.load import read
from culm.engine.sampling import Sampling
from culm.eval.interval import Estimate, wilson
from culm.eval.local import LocalModel
from culm.eval.responder import Generation
from culm.files import read_json, read_lines
from culm.run.settings import RunConfig

QUESTIONS = 1000


class Lesson(NamedTuple):
    """How a task is learned. context: of the model. reply: the longest one, in bytes. sft_steps:
    of fine-tuning, with `sft_rows` rows each. steps: updates of GRPO, with `rows` replies each,
    `group` of them to a question. rate: of its AdamW.
    """

    context: int
    reply: int
    sft_steps: int
    sft_rows: int
    steps: int
    rows: int
    group: int
    rate: float


LESSONS = {
    "countdown": Lesson(
        64, 20, sft_steps=200, sft_rows=64, steps=120, rows=256, group=8,
        rate=1e-4,
    ),
    "word_problem": Lesson(
        224, 48, sft_steps=260, sft_rows=32, steps=60, rows=1024, group=16,
        rate=3e-4,
    ),
}  # fmt: skip


def main() -> None:
    """Run what is not there yet, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("task", nargs="?", default="both", choices=[*LESSONS, "both"])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=Path("runs/reasoning"))
    given = arguments.parse_args()
    print("| task | seed | model | greedy | sampled | reward, first and last ten steps |")
    print("|---|--:|---|--:|--:|--:|")
    for task in LESSONS if given.task == "both" else (given.task,):
        for seed in range(given.seeds):
            learned(task, given.folder / task / str(seed), seed)


def learned(task: str, folder: Path, seed: int) -> None:
    """Rows of one seed."""
    start = trained(fine_tuning(task, folder / "sft", seed))
    show(task, seed, "fine-tuned", start)
    for name in ("grpo", "shuffled"):
        run = trained(reinforcement(task, folder / name, seed, start, name == "shuffled"))
        lines = read_lines(run / "metrics.jsonl")
        first, last = (sum(line["reward"] for line in of) / 10 for of in (lines[:10], lines[-10:]))
        show(task, seed, name, run, f"{first:.2f}, {last:.2f}")


def show(task: str, seed: int, name: str, run: Path, rewards: str = "") -> None:
    greedy = Estimate(**read_json(run / "results.json")["scores"]["all"])
    shares = [
        f"{100 * one.value:.1f} % ({100 * one.low:.1f} - {100 * one.high:.1f})"
        for one in (greedy, sampled(task, run))
    ]
    print(f"| {' | '.join((task, str(seed), name, *shares, rewards))} |", flush=True)


def sampled(task: str, run: Path) -> Estimate:
    """How often one reply at temperature 1 is right."""
    model, tokenizer = read(run, "cpu", torch.float32)
    (asked,) = parse(RunConfig, fine_tuning(task, run, 0)).data.tasks
    questions = [asked.question("test", number, 0) for number in range(QUESTIONS)]
    how = Generation(LESSONS[task].reply, Sampling(temperature=1.0))
    replies = LocalModel(model.eval(), tokenizer).replies(questions, how)
    scores = [
        asked.score(question, reply.text)
        for question, (reply,) in zip(questions, replies, strict=True)
    ]
    return wilson(sum(scores), len(scores))


def evaluation(task: str) -> dict[str, Any]:
    scores = {"kind": "scores", "tasks": [{"kind": task}], "questions": QUESTIONS}
    return {"measures": {"scores": {**scores, "max_tokens": LESSONS[task].reply}}}


def fine_tuning(task: str, folder: Path, seed: int) -> dict[str, Any]:
    lesson = LESSONS[task]
    return {
        "folder": str(folder), "seed": seed, "device": "cpu",
        "tokenizer": {"kind": "bytes", "specials": True},
        "model": {
            "vocabulary": 262, "width": 128, "layers": 4, "context": lesson.context,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
        "data": {"tasks": [{"kind": task}], "format": "chat", "questions": 60_000, "held_out": 0},
        "train": {"steps": lesson.sft_steps, "batch_size": lesson.sft_rows,
                  "context": lesson.context, "optimizer": {"kind": "muon", "rate": 5e-3}},
        "eval": evaluation(task),
    }  # fmt: skip


def reinforcement(
    task: str, folder: Path, seed: int, start: Path, shuffled: bool
) -> dict[str, Any]:
    lesson = LESSONS[task]
    return {
        "folder": str(folder), "seed": seed, "device": "cpu", "start": str(start),
        "data": {"tasks": [{"kind": task}], "format": "chat", "held_out": 0},
        "train": {
            "steps": lesson.steps, "batch_size": lesson.rows, "micro_batch_size": 64,
            "objective": {"kind": "grpo", "average": "tokens"},
            "rollout": {"group": lesson.group, "max_tokens": lesson.reply, "shuffled": shuffled},
            "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
            "optimizer": {"kind": "adamw", "rate": lesson.rate, "weight_decay": 0.0},
        },
        "eval": evaluation(task),
    }  # fmt: skip


if __name__ == "__main__":
    main()
