"""Tiny runs of models of bytes."""

from culm.config import parse
from culm.run.settings import RunConfig

LOCAL = {"kind": "gqa", "heads": 2, "window": 8}
STACK = {"width": 16, "layers": 1, "attention": LOCAL}
BYTES = {"vocabulary": 262, "context": 64, **STACK}
LATENT = {"width": 32, "layers": 1, "attention": {"kind": "gqa", "heads": 2}}


def settings(folder, model, **more):
    text = folder.parent / "text.txt"
    text.write_text("\n".join(f"{n} quick brown foxes jump over a lazy dog" for n in range(90)))
    return parse(RunConfig, {
        "folder": str(folder), "device": "cpu", "model": {**BYTES, **model},
        "tokenizer": {"kind": "bytes", "specials": True},
        "data": {"path": str(text), "held_out": 0.2, "split": "lines"},
        "train": {"steps": 2, "batch_size": 2, "precision": "fp32"},
        "eval": {"measures": {"held_out": {"tokens": 200}}}, **more,
    })  # fmt: skip


def patches(kind, small):
    """Settings of a tiny model. small: a run folder, from which BLT takes its entropies."""
    own = {
        "megabyte": {},
        "spacebyte": {"encoder": STACK},
        "hnet": {"encoder": STACK},
        "blt": {"encoder": STACK, "heads": 2, "patching": {"path": str(small)}},
    }[kind]
    return {"kind": kind, "latent": LATENT, **own}
