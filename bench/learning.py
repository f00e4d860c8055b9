"""Whether post-training learns, beside controls that must not: a table over seeds.

python bench/learning.py --data /path/to/data --seeds 3

data: a folder with tinystories.txt.gz (stories) and instruction-data-with-preference.json (1,100
instructions with a polite and an impolite answer, of the repository rasbt/LLMs-from-scratch). A
base model reads the stories; then

    sft         it learns 990 instructions               control: their answers are shuffled
    reward      a reward model learns polite answers     control: half of the pairs are swapped
    dpo         the policy learns them                   control: half of the pairs are swapped

and 110 instructions that none of them saw are measured. Each run is a `culm train` command.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import culm
from culm.convert.load import read
from culm.engine.continuations import likelihoods
from culm.eval.local import LocalModel
from culm.eval.responder import Generation
from culm.task.task import Question
from culm.text.language_model import LanguageModel

HELD_OUT = 110
MODEL = ["model=nano", "train.batch_size=32"]


def main() -> None:
    """Run what is not there yet, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", required=True, type=Path)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=Path("runs/learning"))
    arguments.add_argument("--pretrain-steps", type=int, default=400)
    given = arguments.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        folder = given.folder / str(seed)
        for name, value in measured(given.data, folder, seed, given.pretrain_steps).items():
            rows.setdefault(name, []).append(value)
        print(json.dumps({"seed": seed, **{name: values[-1] for name, values in rows.items()}}))
    for name, values in rows.items():
        shown = ", ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {fmean(values):.3f} | {shown} |")


def measured(data: Path, folder: Path, seed: int, steps: int) -> dict[str, float]:
    """All results of one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    held = files(data, folder, seed)
    base = train(folder, "pretrain", "base", seed, *MODEL, f"train.steps={steps}",
                 f"data.path={data / 'tinystories.txt.gz'}", "data.held_out=0.02")  # fmt: skip
    found: dict[str, float] = {}
    turned = [held[-1], *held[:-1]]  # each with the instruction of another one
    for name in ("sft", "sft-shuffled"):
        run = train(
            folder, "sft", name, seed, f"start={base}", f"data.path={folder / name}.jsonl",
            "data.tasks=[]", "data.held_out=0", "eval=held_out", "eval.measures.held_out=null",
            "train.steps=60", "train.batch_size=16",
        )  # fmt: skip
        model = culm.load(run, device="cpu")
        found[f"{name}: loss of unseen answers"] = loss_of(model, held)
        found[f"{name}: share of replies that end"] = share_that_ends(model, held)
        others = [
            _record(one) | {"output": own["output"]} for one, own in zip(turned, held, strict=True)
        ]
        found[f"{name}: nats a token that the right instruction gains"] = (
            loss_of(model, others) - found[f"{name}: loss of unseen answers"]
        )
    found["before: loss of unseen answers"] = loss_of(untrained(base), held)
    for name in ("reward", "reward-swapped"):
        train(
            folder, "reward", name, seed, f"start={folder / 'sft'}",
            f"data.path={folder / name}.jsonl", "data.held_out=0.1", "train.steps=100",
        )  # fmt: skip
        found[f"{name}: accuracy of unseen pairs"] = rewarded(folder / name, held)
    start = culm.load(folder / "sft", device="cpu")
    for name in ("dpo", "dpo-swapped"):
        run = train(
            folder, "dpo", name, seed, f"start={folder / 'sft'}",
            f"data.path={folder / name.replace('dpo', 'reward')}.jsonl", "data.held_out=0",
            "eval.measures.held_out=null", "train.steps=100",
        )  # fmt: skip
        margins = margins_of(culm.load(run, device="cpu"), start, held)
        found[f"{name}: accuracy of unseen pairs"] = fmean(margin > 0 for margin in margins)
        found[f"{name}: margin of unseen pairs"] = fmean(margins)
    return found


def train(folder: Path, run: str, name: str, seed: int, *settings: str) -> Path:
    """The folder of a run, which is trained if it is not there."""
    target = folder / name
    if not (target / "results.json").exists():
        line = [sys.executable, "-m", "culm", "train", run, *settings, f"folder={target}",
                f"seed={seed}"]  # fmt: skip
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return target


def files(data: Path, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Write the records of all runs; the 110 pairs that none of them has."""
    pairs = json.loads((data / "instruction-data-with-preference.json").read_text())
    chance = random.Random(seed)
    chance.shuffle(pairs)
    held, own = pairs[:HELD_OUT], pairs[HELD_OUT:]
    answers = [one["output"] for one in own]
    chance.shuffle(answers)
    records = {
        "sft": [_record(one) | {"output": one["output"]} for one in own],
        "sft-shuffled": [
            _record(one) | {"output": answer} for one, answer in zip(own, answers, strict=True)
        ],
        "reward": [_pair(one, False) for one in own],
        "reward-swapped": [_pair(one, chance.random() < 0.5) for one in own],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return held


def _record(one: dict[str, Any]) -> dict[str, Any]:
    return {"instruction": one["instruction"], "input": one["input"]}


def _pair(one: dict[str, Any], swapped: bool) -> dict[str, Any]:
    better, worse = one["chosen"], one["rejected"]
    if swapped:
        better, worse = worse, better
    return {"prompt": prompt_of(one), "chosen": better, "rejected": worse}


def prompt_of(one: dict[str, Any]) -> str:
    """Instruction and input as one text."""
    return "\n\n".join(part for part in (one["instruction"], one["input"]) if part)


def untrained(base: Path) -> LanguageModel:
    """The base model with a chat template."""
    model = culm.load(base, device="cpu")
    tokenizer = model.tokenizer if model.tokenizer.template else model.tokenizer.with_chat()
    return LanguageModel(model.model, tokenizer)


def scored(model: LanguageModel, asked: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
    """Log-probability and tokens of each answer, its end included."""
    pairs = []
    for prompt, answer in asked:
        messages = [{"role": "user", "content": prompt}]
        context = model.tokenizer.chat.prompt(messages)
        whole = model.tokenizer.chat.encode([*messages, {"role": "assistant", "content": answer}])
        last = max(place for place, learned in enumerate(whole.learned) if learned)
        pairs.append((context, whole.ids[len(context) : last + 1]))
    return [(one.logprob, one.tokens) for one in likelihoods(model.model, pairs)]


def loss_of(model: LanguageModel, held: Sequence[dict[str, Any]]) -> float:
    """Nats per token of the right answers."""
    found = scored(model, [(prompt_of(one), one["output"]) for one in held])
    return -sum(total for total, _ in found) / sum(tokens for _, tokens in found)


def share_that_ends(model: LanguageModel, held: Sequence[dict[str, Any]]) -> float:
    """Share of greedy replies that end within 128 tokens."""
    local = LocalModel(model.model, model.tokenizer)
    replies = local.replies([Question(prompt_of(one), "") for one in held], Generation(128))
    return fmean(reply.tokens < 128 for (reply,) in replies)


def margins_of(
    model: LanguageModel, start: LanguageModel, held: Sequence[dict[str, Any]]
) -> list[float]:
    """Of each pair, how much more likely the better answer became than the worse one."""
    asked = [(prompt_of(one), one[kind]) for one in held for kind in ("chosen", "rejected")]
    ours, theirs = scored(model, asked), scored(start, asked)
    gains = [a - b for (a, _), (b, _) in zip(ours, theirs, strict=True)]
    return [a - b for a, b in zip(gains[::2], gains[1::2], strict=True)]


def rewarded(run: Path, held: Sequence[dict[str, Any]]) -> float:
    """Share of pairs whose better answer has the higher reward."""
    asked = [(prompt_of(one), one[kind]) for one in held for kind in ("chosen", "rejected")]
    rewards = rewards_of(run, asked)
    return fmean(a > b for a, b in zip(rewards[::2], rewards[1::2], strict=True))


@torch.inference_mode()
def rewards_of(run: Path, asked: Sequence[tuple[str, str]]) -> list[float]:
    """What a reward model gives to each answer of a prompt."""
    model, tokenizer = read(run, "cpu", None)
    rewards = []
    for prompt, answer in asked:
        messages = [{"role": "user", "content": prompt},
                    {"role": "assistant", "content": answer}]  # fmt: skip
        whole = tokenizer.chat.encode(messages)
        last = max(place for place, learned in enumerate(whole.learned) if learned)
        rewards.append(float(model.scores(torch.tensor([whole.ids[: last + 1]]))[0, -1]))
    return rewards


if __name__ == "__main__":
    main()
