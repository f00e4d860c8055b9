"""Whether a small model answers with tools what it cannot answer without: a table over seeds.

    python bench/tool_use.py --data data/tool_use --seeds 3

data: a folder with seven SQLite databases and the functions of BFCL, which become a folder of
documents. For each seed, a model of about a million parameters learns to call `sql` and `search` by
fine-tuning on generated dialogues, and GRPO goes on in the same environment with further questions,
with the score of the answer as the reward. Two controls have no tools: a model of the same size
learns questions with their answers in as many steps; and the model with tools answers with its
calls left unanswered.

Test questions are about things whose names are in no training question, call or answer; those of
the kind `unseen` are about tables that no training names. Replies are greedy, but in the column
`sampled`, where they are sampled at temperature 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from learning_rl import trained
from tool_dialogues import TESTS, tool_settings, write_dialogues

from culm.convert.load import read
from culm.eval.interval import difference, student, wilson
from culm.eval.local import LocalModel
from culm.eval.measure.scores import Scores
from culm.eval.questions import Answered
from culm.eval.suite import answer_suite, identity_of
from culm.files import read_lines
from culm.task.grade import grade

REPLY = 96  # tokens
NAMES = {
    ("plain", False): "question and answer, no tools",
    ("sft", False): "fine-tuned, tools switched off",
    ("sft", True): "fine-tuned, with tools",
    ("grpo", True): "GRPO, with tools",
}
COMPARED = (  # does the first of two answer more?
    (NAMES["sft", True], NAMES["plain", False]),
    (NAMES["grpo", True], NAMES["sft", True]),
)


@dataclass(frozen=True)
class Size:
    """Of a trial. steps: of fine-tuning and of the control, with `rows` each. updates: of GRPO,
    with `replies` each. training: questions. tests: questions of each kind.
    """

    steps: int = 320
    updates: int = 40
    width: int = 128
    layers: int = 4
    rows: int = 16
    replies: int = 64
    training: int = 3600
    tests: int = 100


TINY = Size(2, 1, width=32, layers=1, rows=2, replies=4, training=40, tests=2)


def main() -> None:
    """Run what is not there yet, and print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", required=True, type=Path)
    arguments.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    arguments.add_argument("--steps", type=int, default=Size.steps, help="of fine-tuning")
    arguments.add_argument("--updates", type=int, default=Size.updates, help="of GRPO")
    arguments.add_argument("--tiny", action="store_true", help="a trial that learns nothing")
    arguments.add_argument("--folder", type=Path, default=Path("runs/tool-use"))
    given = arguments.parse_args()
    size = TINY if given.tiny else Size(given.steps, given.updates)
    columns = ("seed", "model", *TESTS, "all", "normalised", "sampled", "tokens", "seconds")
    print(f"| {' | '.join(columns)} |\n|--:|---|{'--:|' * (len(columns) - 2)}", flush=True)
    found = [
        measured(given.data, given.folder / str(seed), seed, size) for seed in range(given.seeds)
    ]
    print("\n| model | all, mean over seeds | 95 % |\n|---|--:|--:|")
    shares = {name: [fmean(one[name]) for one in found] for name in NAMES.values()}
    for name, own in shares.items():
        print(over_seeds(name, own))
    for ours, theirs in COMPARED:
        gained = [a - b for a, b in zip(shares[ours], shares[theirs], strict=True)]
        print(over_seeds(f"{ours}, over {theirs}", gained))
    print("\n| seed | | points gained on the same questions |\n|--:|---|--:|")
    for seed, scores in enumerate(found):
        print("\n".join(gains(seed, scores)))


def measured(data: Path, folder: Path, seed: int, size: Size) -> dict[str, list[float]]:
    """The score of each answer of each model of a seed, by its name; prints a row for each."""
    files = folder / "questions"
    count = write_dialogues(data, files, seed, size.training, size.tests)
    runs = {
        "plain": trained(tuning(folder / "plain", seed, plain(files, "train"), count, size, 64)),
        "sft": trained(tuning(folder / "sft", seed, tools(files, "train"), count, size, 256)),
    }
    runs["grpo"] = trained(reinforcement(folder / "grpo", seed, files, runs["sft"], size))
    scores = {}
    for (run, with_tools), name in NAMES.items():
        found = answers(runs[run], files, with_tools)
        sampled = answers(runs[run], files, with_tools, temperature=1.0)
        seconds = sum(line["seconds"] for line in read_lines(runs[run] / "metrics.jsonl"))
        print(row(seed, name, found, sampled, seconds), flush=True)
        scores[name] = [one.score for one in found]
    return scores


def answers(run: Path, files: Path, with_tools: bool, temperature: float = 0) -> list[Answered]:
    """Replies to the test questions, which stay in a file of the run's folder."""
    form = tools if with_tools else plain
    tasks = [form(files, kind, "test") for kind in TESTS]
    given = {"tasks": tasks, "questions": None, "max_tokens": REPLY, "temperature": temperature}
    measure = Scores.model_validate(given)
    model, tokenizer = read(run, "cpu", torch.float32)
    path = run / f"answers-{'with' if with_tools else 'without'}-tools-{temperature:g}.jsonl"
    asked = LocalModel(model.eval(), tokenizer)
    return list(answer_suite(asked, identity_of(model), measure, 0, path).answered)


def row(
    seed: int, name: str, answered: Sequence[Answered], sampled: Sequence[Answered], seconds: float
) -> str:
    """Percent that are right, of each kind and in all with Wilson's interval."""
    kinds = [[one.score for one in answered if one.task == kind] for kind in TESTS]
    loose = fmean(grade("normalized", one.question.answer, one.reply) for one in answered)
    tokens = fmean(one.tokens for one in answered)
    cells = [
        str(seed), name, *(f"{100 * fmean(scores):.0f}" for scores in kinds),
        share(answered), f"{100 * loose:.1f}", share(sampled), f"{tokens:.0f}", f"{seconds:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def share(answered: Sequence[Answered]) -> str:
    found = wilson(sum(one.score for one in answered), len(answered))
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} - {100 * found.high:.1f})"


def gains(seed: int, scores: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """What tools and GRPO bring to a seed, by a paired bootstrap."""
    for ours, theirs in COMPARED:
        gain = difference(scores[ours], scores[theirs])
        points = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        yield f"| {seed} | {ours}, over {theirs} | {points} |"


def over_seeds(name: str, shares: Sequence[float]) -> str:
    """The mean over seeds with Student's interval, if there are several."""
    share = student(shares)
    return f"| {name} | {100 * share.value:.1f} | +- {100 * (share.high - share.value):.1f} |"


def tools(files: Path, kind: str, split: str = "train") -> dict[str, Any]:
    return tool_settings(files, f"{kind}.jsonl", split)


def plain(files: Path, kind: str, split: str = "train") -> dict[str, Any]:
    """The same questions without tools."""
    return {
        "kind": "prompts", "name": kind, "path": str(files / f"{kind}.jsonl"), "split": split,
        "prompt": "question", "answer": "answer",
    }  # fmt: skip


def tuning(
    folder: Path, seed: int, task: Mapping[str, Any], questions: int, size: Size, row: int
) -> dict[str, Any]:
    """Fine-tuning from random weights. row: tokens of one; a dialogue without calls is shorter."""
    return {
        "folder": str(folder), "seed": seed, "device": "cpu",
        "tokenizer": {"kind": "bpe", "vocabulary": 1024},
        "model": {
            "vocabulary": 1024, "width": size.width, "layers": size.layers, "context": 256,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
        "data": {"tasks": [task], "format": "chat", "questions": questions, "held_out": 0},
        "train": {"steps": size.steps, "batch_size": size.rows, "context": row,
                  "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.25},
                  "optimizer": {"kind": "muon", "rate": 5e-3}},
        "eval": {"measures": {}},
    }  # fmt: skip


def reinforcement(folder: Path, seed: int, files: Path, start: Path, size: Size) -> dict[str, Any]:
    """GRPO with the tools as the environment; the score of the answer is the reward."""
    return {
        "folder": str(folder), "seed": seed, "device": "cpu", "start": str(start),
        "data": {"tasks": [tools(files, "practice", "train")], "format": "chat", "held_out": 0},
        "train": {
            "steps": size.updates,
            "batch_size": size.replies, "micro_batch_size": size.replies // 2,
            "objective": {"kind": "grpo", "average": "tokens"},
            "rollout": {"group": min(8, size.replies // 2), "max_tokens": REPLY},
            "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
            "optimizer": {"kind": "adamw", "rate": 4e-4, "betas": [0.95, 0.99], "eps": 1e-3,
                          "weight_decay": 0.0},
        },
        "eval": {"measures": {}},
    }  # fmt: skip


if __name__ == "__main__":
    main()
