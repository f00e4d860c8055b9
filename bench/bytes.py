"""Models of bytes, of patches and of tokens at equal training FLOPs.

    python bench/bytes.py FOLDER TRAIN.jsonl.gz HELD_OUT.jsonl.gz [--tera 0.6] [--seeds 1]

Every family trains on the same text, in rows of 512 bytes (tokens: as many as have 512 bytes on
average), for as many steps as give the same FLOPs, counted by `culm.plan` of the real modules. The
small model of BLT is in its FLOPs; its own training is not. Then held-out books are scored in
pieces of 512 bytes: as they are, with the case of one letter in ten changed, and with one letter
in twenty deleted, doubled or swapped with the next. The last number is of fine-tuning: strings of
three to five letters, reversed, without spaces between them.

FOLDER/results.jsonl has a line for each run; `--only` names some families, and `--plot FILE.svg`
draws all results.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from learning_rl import run_to_end

import culm
from culm.bytelatent.model import PatchModel
from culm.config import parse
from culm.engine.scoring import score
from culm.plan.model import cost_of
from culm.run.patching import model_settings
from culm.run.settings import RunConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer import TokenizerConfig

ROW, ROWS, PIECES = 512, 8, 150  # bytes of a row, rows of a step, held-out pieces
TEXT = 6_000_000  # bytes of training text
VOCABULARY = 2048
PLAIN = {"kind": "gqa", "qk_norm": "head"}


def block(width: int, layers: int, window: int | None = None) -> dict[str, Any]:
    attention = {**PLAIN, "heads": width // 32, "window": window}
    mlp = {"kind": "swiglu", "hidden": 8 * width // 3 // 16 * 16}
    return {"width": width, "layers": layers, "attention": attention, "mlp": mlp}


BYTES = {"vocabulary": 262, "context": ROW}
LOCAL = {**BYTES, **block(64, 1, 128), "encoder": block(64, 1, 128), "latent": block(128, 3)}
FAMILIES: dict[str, dict[str, Any]] = {
    "bytes": {**BYTES, **block(96, 3)},
    "megabyte": {
        "kind": "megabyte",
        "patch": 4,
        **BYTES,
        **block(64, 2, 4),
        "latent": block(128, 3),
    },
    "spacebyte": {"kind": "spacebyte", **LOCAL},
    "blt": {"kind": "blt", **LOCAL, "heads": 2, "ngrams": {"sizes": [3, 4, 5], "buckets": 2048}},
    "hnet": {"kind": "hnet", **LOCAL},
    "bpe": {"vocabulary": VOCABULARY, **block(96, 3)},
    "bpe dropout": {"vocabulary": VOCABULARY, **block(96, 3)},
    "superbpe": {"vocabulary": VOCABULARY, **block(96, 3)},
    "unigram": {"vocabulary": VOCABULARY, **block(96, 3)},
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "bpe": {"kind": "bpe", "vocabulary": VOCABULARY},
    "bpe dropout": {"kind": "bpe", "vocabulary": VOCABULARY},
    "superbpe": {"kind": "superbpe", "vocabulary": VOCABULARY},
    "unigram": {"kind": "sentencepiece", "vocabulary": VOCABULARY},
}
REVERSE = {
    "kind": "letters", "name": "reverse", "operation": "reverse", "spaces": False, "shortest": 3,
    "longest": 5,
}  # fmt: skip
SMALL = {**BYTES, **block(64, 2)}


def texts(path: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def pieces(path: str) -> list[str]:
    """Of 512 bytes or less, evenly spread over the books."""
    joined = "\n\n".join(texts(path))
    step = len(joined) // PIECES
    starts = (joined.find(" ", number * step) + 1 for number in range(PIECES))
    return [joined[s : s + ROW].encode()[:ROW].decode(errors="ignore") for s in starts]


def recased(text: str, chance: random.Random) -> str:
    return "".join(c.swapcase() if chance.random() < 0.1 else c for c in text)


def mistyped(text: str, chance: random.Random) -> str:
    letters, place, out = list(text), 0, []
    while place < len(letters):
        letter, kind = letters[place], chance.random()
        if letter.isalpha() and kind < 0.05 / 3:
            pass
        elif letter.isalpha() and kind < 0.1 / 3:
            out += [letter, letter]
        elif letter.isalpha() and kind < 0.05 and place + 1 < len(letters):
            out += [letters[place + 1], letter]
            place += 1
        else:
            out.append(letter)
        place += 1
    return "".join(out)


def bits_per_byte(model: LanguageModel, given: list[str]) -> float:
    """Of all but the first token of each piece."""
    ids = [model.encode(text) for text in given]
    nll = -sum(float(one.sum()) for one in score(model.model, ids))
    sizes = model.tokenizer.sizes
    return nll / math.log(2) / sum(sizes[id] for one in ids for id in one[1:])


def settings(name: str, folder: Path, train: str, seed: int, small: Path | None) -> RunConfig:
    model = dict(FAMILIES.get(name, SMALL))
    if name == "blt":
        model["patching"] = {"path": str(small)}
    data: dict[str, Any] = {"path": train, "max_bytes": TEXT, "held_out": 0.02}
    if name == "bpe dropout":
        data["format"] = {"kind": "document", "bpe_dropout": 0.1}
    tokenizer = TOKENIZERS.get(name, {"kind": "bytes", "specials": True})
    if name in TOKENIZERS:
        model["context"] = tokens_in_row(tokenizer, train)
    return parse(RunConfig, {
        "folder": str(folder), "seed": seed, "device": "cpu", "tokenizer": tokenizer,
        "model": model, "data": data,
        "train": {
            "steps": 1, "batch_size": ROWS, "precision": "fp32",
            "optimizer": {"kind": "muon", "rate": 3e-3},
            "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.4},
        },
        "eval": {"measures": {"held_out": {"tokens": 20_000}}},
    })  # fmt: skip


def tokens_in_row(tokenizer: dict[str, Any], train: str) -> int:
    """Tokens that have 512 bytes on average, in a part of the text that is trained on."""
    joined = "".join(texts(train)[:6])
    built = parse(TokenizerConfig, tokenizer).build([joined[:TEXT]])
    sample = joined[: TEXT // 10]
    return round(ROW * len(built.encode(sample)) / len(sample.encode()))


def with_steps(config: RunConfig, flops: float) -> tuple[RunConfig, float]:
    """The run with as many steps as give these FLOPs, and the FLOPs of a byte."""
    cost = cost_of(model_settings(config), dtype=torch.float32)
    row = cost.training_flops * cost.context
    steps = max(1, round(flops / (row * ROWS)))
    return config.model_copy(
        update={"train": config.train.model_copy(update={"steps": steps})}
    ), row / ROW


def word_starts(model: LanguageModel, given: list[str]) -> dict[str, float]:
    """How well the ends of patches match the bytes before words: F1, and that of random ends."""
    if not isinstance(model.model, PatchModel):
        return {}
    hits = ends = starts = count = 0
    for text in given:
        ids = model.encode(text)
        found = model.model.ends(torch.tensor([ids]))[0]
        # With the space, or with the first byte of the word: both know that a word starts.
        space = torch.tensor([id in b" \n" for id in ids])
        first = torch.cat((torch.zeros(1, dtype=torch.bool), space[:-1])) & ~space
        hits += int(max((found & space).sum(), (found & first).sum()))
        ends, starts, count = ends + int(found.sum()), starts + int(first.sum()), count + len(ids)
    f1 = 2 * hits / (ends + starts)
    return {
        "bytes_per_patch": count / ends, "word_f1": f1,
        "random_f1": 2 * (ends / count * starts) / (ends + starts),
    }  # fmt: skip


def reversing(folder: Path, seed: int) -> float:
    """Share of strings that are right after fine-tuning."""
    config = parse(RunConfig, {
        "folder": str(folder.with_name(f"{folder.name}-reverse")), "seed": seed, "device": "cpu",
        "start": str(folder),
        "data": {"format": "chat", "tasks": [REVERSE], "questions": 20_000, "held_out": 0},
        "train": {
            "steps": 120, "batch_size": 8, "precision": "fp32", "context": 128,
            "optimizer": {"kind": "muon", "rate": 2e-3}, "schedule": {"kind": "cosine"},
        },
        "eval": {"measures": {"scores": {"tasks": [REVERSE], "questions": 200}}},
    })  # fmt: skip
    run_to_end(config)
    results = json.loads((Path(config.folder) / "results.json").read_text())
    return float(results["scores"]["reverse"]["value"])


def measured(name: str, folder: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    small = folder.with_name(f"entropy-{seed}")
    if name == "blt" and not (small / "results.json").exists():
        config = settings("entropy", small, options.train, seed, None)
        run_to_end(with_steps(config, 0.1e12 * options.tera)[0])
    config = settings(name, folder, options.train, seed, small)
    config, per_byte = with_steps(config, 1e12 * options.tera)
    run_to_end(config)
    model, given = culm.load(folder, device="cpu"), pieces(options.held_out)
    chance = random.Random(1)
    noisy = {
        "case": [recased(text, chance) for text in given],
        "typos": [mistyped(text, chance) for text in given],
    }
    clean = bits_per_byte(model, given)
    size = sum(p.numel() for p in model.model.parameters())
    return {
        "family": name, "seed": seed, "parameters": size,
        "mflops_per_byte": per_byte / 1e6, "steps": config.train.steps,
        "bytes": config.train.steps * ROWS * ROW, "bits_per_byte": clean,
        **{kind: bits_per_byte(model, one) - clean for kind, one in noisy.items()},
        **word_starts(model, given), "reverse": reversing(folder, seed),
    }  # fmt: skip


def show(lines: list[dict[str, Any]]) -> None:
    columns = ("mflops_per_byte", "bytes", "bits_per_byte", "case", "typos", "reverse",
               "bytes_per_patch", "word_f1", "random_f1")  # fmt: skip
    print(f"{'family':12}" + "".join(f"{name:>17}" for name in columns))
    for name in dict.fromkeys(line["family"] for line in lines):
        own = [line for line in lines if line["family"] == name]
        cells = []
        for column in columns:
            values = [line[column] for line in own if column in line]
            mean = statistics.fmean(values) if values else math.nan
            spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 and mean < 100 else ""
            cells.append(f"{f'{mean:,.3f}{spread}' if values else '':>17}")
        print(f"{name:12}" + "".join(cells))


def plot(lines: list[dict[str, Any]], path: str) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(line["family"] for line in lines))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
    titles = {
        "bits_per_byte": "bits per byte of held-out books",
        "typos": "more bits per byte with typos",
        "reverse": "strings reversed, share right",
    }
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for place, name in enumerate(names):
            values = [line[column] for line in lines if line["family"] == name]
            axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
            axis.plot(statistics.fmean(values), place, "|", color="C3", markersize=18)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--tera", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES))
    parser.add_argument("--plot")
    options = parser.parse_args()
    results = options.folder / "results.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    for seed in range(options.seeds):
        for name in options.only:
            if any((line["family"], line["seed"]) == (name, seed) for line in lines):
                continue
            folder = options.folder / f"{name.replace(' ', '-')}-{seed}"
            lines.append(measured(name, folder, options, seed))
            with results.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(lines[-1], flush=True)
    show(lines)
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
