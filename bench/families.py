"""Every family of language models at equal training FLOPs: trains the runs of one chart.

    python bench/families.py FOLDER TEXT [--tera 4] [--seeds 3] [--only blt hnet]
    culm compare FOLDER --metric bits_per_byte --out families.svg

TEXT: files that a run can read, as `novels/`. Every family reads rows of 512 bytes (tokens: as many
as have 512 bytes on average) and trains for as many steps as give the same FLOPs, counted by
`culm.plan` of the real modules. The entropy model of BLT is in its FLOPs; its training is not. The
FLOPs of a patch model depend on its patches: a line for each run says how many bytes its patches
had, and how many were planned. All have one optimizer and learning rate. A run that exists is not
trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from learning_rl import run_to_end

from culm.bytelatent.spacebyte import spacelike
from culm.config import parse
from culm.eval.measure.text import Text
from culm.files import read_lines
from culm.plan.model import cost_of
from culm.run.patching import model_settings
from culm.run.settings import RunConfig
from culm.tokenizer import TokenizerConfig

ROW, ROWS = 512, 8  # bytes of a row, rows of a step
TEXT, SCORED = 12_000_000, 150_000  # bytes of text that is read, and of held-out text
SAMPLE = 1_000_000  # bytes by which a row of tokens is sized
VOCABULARY = 2048
PLAIN = {"kind": "gqa", "qk_norm": "head"}
MUON = {"kind": "muon", "rate": 3e-3}


def block(width: int, layers: int, window: int | None = None) -> dict[str, Any]:
    attention = {**PLAIN, "heads": width // 32, "window": window}
    mlp = {"kind": "swiglu", "hidden": 8 * width // 3 // 16 * 16}
    return {"width": width, "layers": layers, "attention": attention, "mlp": mlp}


@dataclass(frozen=True)
class Family:
    """Settings of a run, with those that all have. tokenizer: of bytes, unless given."""

    model: dict[str, Any]
    tokenizer: dict[str, Any] | None = None
    train: dict[str, Any] = field(default_factory=dict)
    format: dict[str, Any] = field(default_factory=dict)


BYTES = {"vocabulary": 262, "context": ROW}
LOCAL = {**BYTES, **block(64, 1, 128), "encoder": block(64, 1, 128), "latent": block(128, 3)}
TOKENS = {"vocabulary": VOCABULARY, **block(96, 3)}
BPE = {"kind": "bpe", "vocabulary": VOCABULARY}
HYPERBOLIC = {
    **TOKENS,
    "attention": {"kind": "hyperbolic", "heads": 3, "qk_norm": True},
    "mlp": {"kind": "hyperbolic", "hidden": 256},
    "residual": {"curvature": 1.0},
}
FAMILIES = {
    "bytes": Family({**BYTES, **block(96, 3)}),
    "megabyte": Family(
        {"kind": "megabyte", "patch": 4, **BYTES, **block(64, 2, 4), "latent": block(128, 3)}
    ),
    "spacebyte": Family({"kind": "spacebyte", **LOCAL}),
    "blt": Family(
        {"kind": "blt", **LOCAL, "heads": 2, "ngrams": {"sizes": [3, 4, 5], "buckets": 2048}}
    ),
    "hnet": Family({"kind": "hnet", **LOCAL, "ratio_weight": 0.3}),  # 0.03 does not hold the ratio
    "bpe": Family(TOKENS, BPE),
    "bpe-dropout": Family(TOKENS, BPE, format={"kind": "document", "bpe_dropout": 0.1}),
    "superbpe": Family(TOKENS, {**BPE, "kind": "superbpe"}),
    "unigram": Family(TOKENS, {**BPE, "kind": "sentencepiece"}),
    "mtp": Family({**TOKENS, "mtp": {"depth": 1}}, BPE),
    "diffusion": Family(TOKENS, BPE, {"objective": "masked_diffusion"}),
    "hyperbolic": Family(HYPERBOLIC, BPE),
}
ENTROPY = Family({**BYTES, **block(64, 2)})  # of BLT


def settings(folder: Path, text: str, family: Family, seed: int) -> RunConfig:
    """One step, whose number `with_steps` sets."""
    tokenizer = family.tokenizer or {"kind": "bytes", "specials": True}
    data: dict[str, Any] = {"path": text, "max_bytes": TEXT, "held_out": 0.1}
    context = ROW
    if family.tokenizer:
        context = tokens_in_row(tokenizer, text)
    if family.format:
        data["format"] = family.format
    return parse(RunConfig, {
        "folder": str(folder), "seed": seed, "device": "cpu", "tokenizer": tokenizer,
        "model": {**family.model, "context": context}, "data": data,
        "train": {
            "steps": 1, "batch_size": ROWS, "precision": "fp32", "optimizer": MUON,
            "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.4}, **family.train,
        },
        "eval": {"measures": {"held_out": {"tokens": SCORED * context // ROW}}},
    })  # fmt: skip


def tokens_in_row(tokenizer: dict[str, Any], text: str) -> int:
    """Tokens that have 512 bytes on average, in the first documents."""
    sample = "".join(Text(path=text, documents=10).texts())[:SAMPLE]
    built = parse(TokenizerConfig, tokenizer).build([sample])
    return round(ROW * len(built.encode(sample)) / len(sample.encode()))


def bytes_in_patch(text: str) -> float:
    """Of SpaceByte in rows of 512 bytes, in the first documents."""
    sample = "".join(Text(path=text, documents=10).texts()).encode()[:SAMPLE]
    space = spacelike(torch.tensor(list(sample)))
    patches = int((space[1:] & ~space[:-1]).sum()) + len(sample) / ROW  # a row begins with one
    return len(sample) / patches


def with_steps(config: RunConfig, flops: float) -> RunConfig:
    """The run with as many steps as give these FLOPs, measured five times on the way."""
    cost = cost_of(model_settings(config), dtype=torch.float32)
    steps = max(1, round(flops / (cost.training_flops * cost.context * ROWS)))
    train = config.train.model_copy(update={"steps": steps})
    measured = config.eval.model_copy(update={"every_steps": max(1, steps // 6)})
    return config.model_copy(update={"train": train, "eval": measured})


def train_family(name: str, folder: Path, text: str, seed: int, tera: float) -> None:
    family = FAMILIES[name]
    if name == "blt":
        small = folder.parent / "entropy" / str(seed)
        run_to_end(with_steps(settings(small, text, ENTROPY, seed), 1e11 * tera))
        family = replace(family, model={**family.model, "patching": {"path": str(small)}})
    if name == "spacebyte":
        family = replace(family, model={**family.model, "bytes_per_patch": bytes_in_patch(text)})
    config = with_steps(settings(folder, text, family, seed), 1e12 * tera)
    run_to_end(config)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "patches_per_byte" in line]
    if lines:
        measured = len(lines) / sum(line["patches_per_byte"] for line in lines)
        planned = model_settings(config).bridge().bytes_per_patch
        print(f"{folder.name}: {measured:.2f} bytes a patch, {planned:.2f} planned", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text")
    parser.add_argument("--tera", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    options = parser.parse_args()
    for seed in range(options.seeds):
        for name in options.only:
            folder = options.folder / f"{name}-{seed}"
            if not (folder / "results.json").exists():
                train_family(name, folder, options.text, seed, options.tera)


if __name__ == "__main__":
    main()
