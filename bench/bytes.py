"""How the runs of `bench/families.py` bear noise, cut text into patches, and see letters.

    python bench/bytes.py FOLDER HELD_OUT [--plot FILE.svg]

HELD_OUT: text that no run has read; pieces of 512 bytes of it are scored as they are, with the case
of one letter in ten changed, and with one letter in twenty deleted, doubled or swapped with the
next. `reverse` is the share of right answers after fine-tuning: strings of three to five letters,
reversed, without spaces between them. FOLDER/bytes.jsonl has a line for each run; a run that has
one is not measured again. A model that fills in masked tokens is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, ROW
from learning_rl import run_to_end
from torch import Tensor

import culm
from culm.bytelatent.model import PatchModel
from culm.config import parse
from culm.engine.scoring import score
from culm.eval.measure.text import Text
from culm.run.settings import RunConfig
from culm.text.language_model import LanguageModel

PIECES = 150
REVERSE = {
    "kind": "letters", "name": "reverse", "operation": "reverse", "spaces": False, "shortest": 3,
    "longest": 5,
}  # fmt: skip


def pieces(path: str) -> list[str]:
    """Of 512 bytes or less, evenly spread over the text."""
    joined = "\n\n".join(Text(path=path).texts())
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


def word_starts(model: LanguageModel, given: list[str]) -> dict[str, float]:
    """How well the ends of patches match the starts of words: F1, and that of random ends."""
    if not isinstance(model.model, PatchModel):
        return {}
    hits = ends = starts = count = 0
    for text in given:
        ids = model.encode(text)
        found = model.model.ends(torch.tensor([ids]))[0]
        hits, ends = hits + matched(ids, found), ends + int(found.sum())
        starts, count = starts + int(firsts(ids).sum()), count + len(ids)
    share = ends / count
    return {
        "bytes_per_patch": 1 / share, "word_f1": 2 * hits / (ends + starts),
        "random_f1": 2 * starts * (1 - (1 - share) ** 2) / (ends + starts),
    }  # fmt: skip


def firsts(ids: list[int]) -> Tensor:
    """(T,) bool: the first byte of each word but the first one."""
    space = torch.tensor([id in b" \n" for id in ids])
    return torch.cat((torch.zeros(1, dtype=torch.bool), space[:-1])) & ~space


def matched(ids: list[int], ends: Tensor) -> int:
    """Words at whose start a patch ends: with the space before it, or with its first byte, since
    kinds of models differ in that; each word counts once. ends: (T,) bool.
    """
    with_either = ends | torch.cat((torch.zeros(1, dtype=torch.bool), ends[:-1]))
    return int((with_either & firsts(ids)).sum())


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


def measured(family: str, folder: Path, seed: int, given: list[str]) -> dict[str, Any]:
    model, chance = culm.load(folder, device="cpu"), random.Random(1)
    noisy = {
        "case": [recased(text, chance) for text in given],
        "typos": [mistyped(text, chance) for text in given],
    }
    clean = bits_per_byte(model, given)
    return {
        "family": family, "seed": seed, "bits_per_byte": clean,
        **{kind: bits_per_byte(model, one) - clean for kind, one in noisy.items()},
        **word_starts(model, given), "reverse": reversing(folder, seed),
    }  # fmt: skip


def show(lines: list[dict[str, Any]]) -> None:
    columns = ("bits_per_byte", "case", "typos", "reverse", "bytes_per_patch", "word_f1",
               "random_f1")  # fmt: skip
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
    parser.add_argument("held_out")
    parser.add_argument("--plot")
    options = parser.parse_args()
    results, given = options.folder / "bytes.jsonl", pieces(options.held_out)
    old = results.read_text().splitlines() if results.exists() else []
    lines = [json.loads(line) for line in old]
    for family in FAMILIES:
        for folder in sorted(options.folder.glob(f"{family}-[0-9]")):
            seed = int(folder.name[-1])
            if any((line["family"], line["seed"]) == (family, seed) for line in lines):
                continue
            if family != "diffusion" and (folder / "results.json").exists():
                lines.append(measured(family, folder, seed, given))
                with results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    show(lines)
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
