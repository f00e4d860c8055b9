"""PPO against a learned reward, and what the rule that it stands for says: a plot and a table.

    python bench/overoptimization.py --data tinystories.txt.gz --plot overoptimization.svg

The rule (the gold score) is how many different letters a reply has. A tiny model learns sentences
of stories; pairs of its replies are ordered by the rule, one in ten the wrong way round, and a
reward model learns them. PPO then follows the reward model alone, while the rule is recorded
(Gao et al. 2022, arXiv 2210.10760). Both are shown in standard deviations of the first replies,
over the distance from the start in nats.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from learning import rewards_of
from learning_rl import trained, untrained

import culm
from culm.engine.sampling import Sampling
from culm.eval.local import LocalModel
from culm.eval.plots import lines
from culm.eval.responder import Generation
from culm.files import read_json, read_lines
from culm.task.task import Question

TOKENS, STEPS, ROWS = 24, 90, 128
PROMPTS, SAMPLES = 80, 20
WINDOW = 5  # steps that a point of the plot is the mean of


def distinct_letters(completion: str) -> float:
    """The gold score, which the PPO run reads from this file as a reward of weight 0."""
    return float(len(set(re.findall("[a-z]", completion))))


def main() -> None:
    """Run what is not there yet, print the table and draw the plot."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", required=True, type=Path)
    arguments.add_argument("--plot", required=True, type=Path)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=Path("runs/overoptimization"))
    given = arguments.parse_args()
    runs = [curve(given.data, given.folder / str(seed), seed) for seed in range(given.seeds)]
    print("| seed | accuracy of the reward model | reward, last | gold, best | at nats | last "
          "| at nats |\n|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for seed, (accuracy, points) in enumerate(runs):
        best, last = max(points, key=lambda point: point["gold"]), points[-1]
        print(f"| {seed} | {accuracy:.2f} | {last['model']:+.1f} | {best['gold']:+.1f} "
              f"| {best['kl']:.0f} | {last['gold']:+.1f} | {last['kl']:.0f} |")  # fmt: skip
    means = [
        {name: fmean(point[name] for point in same) for name in same[0]}
        for same in zip(*(points for _, points in runs), strict=True)
    ]
    curves = {
        "reward model": [(point["kl"], point["model"]) for point in means],
        "gold score": [(point["kl"], point["gold"]) for point in means],
    }
    lines(given.plot, curves, "KL from the start, nats a reply", "standard deviations gained")


def curve(data: Path, folder: Path, seed: int) -> tuple[float, list[dict[str, float]]]:
    """Held-out accuracy of the reward model, and of PPO: nats, reward and gold score."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = folder / "sentences.jsonl"
    write(sentences, sentences_of(data, seed))
    start = trained(fine_tuning(folder / "sft", seed, sentences))
    if not (pairs := folder / "pairs.jsonl").exists():
        write(pairs, compared(start, sentences, seed))
    judge = trained(reward(folder / "reward", seed, start, pairs))
    run = trained(ppo(folder / "ppo", seed, start, judge, sentences))
    accuracy = read_json(judge / "results.json")["accuracy"]["value"]
    steps = read_lines(run / "metrics.jsonl")
    first = spreads(start, judge, sentences, seed)
    points = []
    for at in range(0, len(steps), WINDOW):
        part = steps[at : at + WINDOW]
        point = {"kl": fmean(line["kl"] for line in part)}
        for name, (mean, spread) in first.items():
            point[name] = (fmean(line[f"reward_{name}"] for line in part) - mean) / spread
        points.append(point)
    return accuracy, points


def spreads(start: Path, judge: Path, sentences: Path, seed: int) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of both scores over the replies of the start."""
    asked = replies(start, sentences, seed)[::2]
    scores = {
        "model": rewards_of(judge, asked),
        "gold": [distinct_letters(one) for _, one in asked],
    }
    return {name: (fmean(of), pstdev(of)) for name, of in scores.items()}


def fine_tuning(folder: Path, seed: int, sentences: Path) -> dict[str, Any]:
    """The start: it completes sentences."""
    return {
        **untrained(folder, seed, layers=2),
        "data": {"path": str(sentences), "format": "chat", "held_out": 0},
        "train": {"steps": 400, "batch_size": 64, "context": 48, "precision": "fp32",
                  "optimizer": {"kind": "muon", "rate": 5e-3}},
        "eval": {"measures": {}},
    }  # fmt: skip


def reward(folder: Path, seed: int, start: Path, pairs: Path) -> dict[str, Any]:
    return {
        "folder": str(folder), "seed": seed, "device": "cpu", "start": str(start),
        "data": {"path": str(pairs), "format": "pair", "held_out": 0.1},
        "train": {"steps": 80, "batch_size": 16, "precision": "fp32", "objective": "reward",
                  "optimizer": {"kind": "adamw", "rate": 1e-3, "weight_decay": 0.0}},
        "eval": {"measures": {"pairs": {}}},
    }  # fmt: skip


def ppo(folder: Path, seed: int, start: Path, judge: Path, sentences: Path) -> dict[str, Any]:
    rule = {"kind": "function", "path": __file__, "name": distinct_letters.__name__}
    rewards = [{"kind": "model", "path": str(judge)}, {**rule, "label": "gold", "weight": 0.0}]
    task = {"kind": "prompts", "path": str(sentences), "answer": "completion", "split": "train"}
    return {
        "folder": str(folder), "seed": seed, "device": "cpu", "start": str(start),
        "data": {"tasks": [task], "format": "chat", "held_out": 0},
        "train": {
            "steps": STEPS, "batch_size": ROWS, "precision": "fp32",
            "objective": {"kind": "ppo", "kl": 0.002},
            "rollout": {"group": 1, "epochs": 2, "max_tokens": TOKENS}, "reward": rewards,
            "schedule": {"kind": "constant"},
            "optimizer": {"kind": "adamw", "rate": 3e-4, "weight_decay": 0.0},
        },
        "eval": {"measures": {}},
    }  # fmt: skip


def sentences_of(data: Path, seed: int) -> list[dict[str, str]]:
    """Short sentences, after their first word as a prompt."""
    text = gzip.decompress(data.read_bytes()).decode()
    short = sorted(set(re.findall(r"(?<=[.!?] )[a-z][a-z ,']{11,22}[.!?]", text)))
    random.Random(seed).shuffle(short)
    return [{"prompt": one.split()[0], "completion": one} for one in short[:8000]]


def write(path: Path, records: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def compared(start: Path, sentences: Path, seed: int) -> list[dict[str, str]]:
    """Pairs of sampled replies, the better one by the rule first, with one in ten swapped."""
    chance, found = random.Random(seed), []
    sampled = replies(start, sentences, seed)
    for (prompt, first), (_, second) in zip(sampled[::2], sampled[1::2], strict=True):
        better, worse = sorted((first, second), key=distinct_letters, reverse=True)
        if distinct_letters(better) == distinct_letters(worse):
            continue
        if chance.random() < 0.1:
            better, worse = worse, better
        found.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return found


def replies(start: Path, sentences: Path, seed: int) -> list[tuple[str, str]]:
    """Sampled replies with their prompts, an even number of each prompt."""
    model = culm.load(start, device="cpu")
    lines = sentences.read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))[:PROMPTS]
    how = Generation(TOKENS, Sampling(1.0), samples=SAMPLES)
    local = LocalModel(model.model, model.tokenizer, seed)
    found = local.replies([Question(prompt, "") for prompt in prompts], how)
    return [(prompt, one.text) for prompt, of in zip(prompts, found, strict=True) for one in of]


if __name__ == "__main__":
    main()
