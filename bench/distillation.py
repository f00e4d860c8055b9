"""A student that learns from a teacher next to one that learns alone, from equal tokens: a table.

    python bench/distillation.py --data tinystories.txt.gz

Both students start from the same weights and read the same bytes in the same order; one learns the
next byte, the other the distribution of the teacher. Measured on stories that no model learned:
the divergence from the teacher, how often the most likely byte is the same, and the loss.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from learning_rl import trained

import culm
from culm.eval.divergence import Divergence, compare

HELD, LENGTH = 60_000, 128  # bytes that no model learns, and of a row
TEACHER_STEPS, STEPS = 300, 450
NAMES = ("alone", "distilled")


def main() -> None:
    """Run what is not there yet, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", required=True, type=Path)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    given = arguments.parse_args()
    found: dict[str, list[Divergence]] = {name: [] for name in NAMES}
    for seed in range(given.seeds):
        for name, one in compared(given.data, given.folder / str(seed), seed).items():
            found[name].append(one)
            print(seed, name, one, flush=True)
    print("| student | KL from the teacher, nats | same top byte | loss, nats a byte | teacher |")
    print("|---|--:|--:|--:|--:|")
    for name, of in found.items():
        columns = (
            [one.divergence for one in of], [100 * one.agreement for one in of],
            [one.changed for one in of], [one.loss for one in of],
        )  # fmt: skip
        cells = [f"{fmean(c):.3f} ({', '.join(f'{x:.3f}' for x in c)})" for c in columns]
        print(f"| {name} | {' | '.join(cells)} |")


def compared(data: Path, folder: Path, seed: int) -> dict[str, Divergence]:
    """Both students of one seed against their teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    text = gzip.decompress(data.read_bytes())
    (folder / "stories.txt").write_bytes(text[:-HELD])
    teacher = trained(
        run(folder, "teacher", seed, TEACHER_STEPS, "next_token", width=128, layers=3)
    )
    distill = {"kind": "distill", "teacher": str(teacher)}
    objectives: dict[str, Any] = {"alone": "next_token", "distilled": distill}
    students = {
        name: trained(run(folder, name, seed, STEPS, objectives[name], width=48, layers=2))
        for name in NAMES
    }
    rows = torch.tensor(list(text[-HELD:]))[: HELD // LENGTH * LENGTH].view(-1, LENGTH)
    original = culm.load(teacher, device="cpu").model
    return {
        name: compare(original, culm.load(student, device="cpu").model, rows)
        for name, student in students.items()
    }


def run(
    folder: Path, name: str, seed: int, steps: int, objective: object, *, width: int, layers: int
) -> dict[str, Any]:
    """Settings of a model of bytes, whose ids the tokenizer leaves as they are."""
    return {
        "folder": str(folder / name), "seed": seed, "device": "cpu", "tokenizer": "bytes",
        "model": {
            "vocabulary": 256, "width": width, "layers": layers, "context": LENGTH,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
        "data": {"path": str(folder / "stories.txt"), "held_out": 0},
        "train": {"steps": steps, "batch_size": 32, "precision": "fp32", "objective": objective,
                  "optimizer": {"kind": "muon", "rate": 3e-3}},
        "eval": {"measures": {}},
    }  # fmt: skip


if __name__ == "__main__":
    main()
