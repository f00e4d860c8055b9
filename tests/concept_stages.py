"""Tiny runs of a sentence autoencoder, and of networks over its concepts."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from culm.run.settings import RunConfig, read_run
from culm.run.train import Result, train

T = TypeVar("T")

SMALL = {
    "width": 24, "layers": 1, "context": 8,
    "attention": {"kind": "gqa", "heads": 2, "qk_norm": "head"},
}  # fmt: skip
MODEL = {
    "model.vocabulary": 257, "tokenizer": "bytes", "model.width": 32, "model.concept": 16,
    "model.attention": {"kind": "gqa", "heads": 2, "qk_norm": "head"}, "model.context": 128,
    "model.layers": 1, "model.encoder_layers": 1,
}  # fmt: skip


def write_texts(folder: Path) -> None:
    """Forty texts of up to nine sentences, in t.jsonl."""
    chance, names, acts = random.Random(0), ("Tom", "Ann", "Eve"), ("ran", "slept", "sang")
    with (folder / "t.jsonl").open("w") as file:
        for number in range(40):
            said = [f"{chance.choice(names)} {chance.choice(acts)}." for _ in range(number % 9 + 1)]
            file.write(json.dumps({"text": " ".join(said)}) + "\n")


def config_of(texts: Path, name: str, **settings: Any) -> RunConfig:
    """Of a run over the texts in a folder."""
    given = {
        "data.path": texts / "t.jsonl", "device": "cpu", "train.precision": "fp32",
        "train.batch_size": 4, "train.micro_batch_size": 2, "train.schedule": "constant",
        "data.held_out": 0.2, **settings,
    }  # fmt: skip
    if name != "pretrain":
        given["data.format.sentences"] = 8
    words = [f"{key}={json.dumps(v) if isinstance(v, dict) else v}" for key, v in given.items()]
    return read_run(name, words)[0]


def start(texts: Path, name: str, **settings: Any) -> Result:
    """A run over the texts in a folder."""
    return train(config_of(texts, name, **settings))


def autoencoder_in(folder: Path, name: str = "ae", steps: int = 40, **more: Any) -> Result:
    """Trained in the folder of its texts."""
    settings = {**MODEL, "train.steps": steps, **more}
    return start(folder, "concept-autoencoder", folder=folder / name, **settings)


def lcm(
    run: Callable[..., T], folder: Path, autoencoder: Path, kind: str, trunk: dict = SMALL,
    **more: Any,
) -> T:  # fmt: skip
    """A run of a network. run: `start` or `config_of` for a folder of texts."""
    objective = {"kind": kind, "autoencoder": str(autoencoder), "trunk": trunk}
    if kind == "two_tower":
        objective |= {"denoiser_layers": 1, "denoiser_heads": 2}
    if kind == "quantized":
        objective |= {"codebooks": 2, "codes": 4}
    settings = {"train.objective": objective, "train.steps": 4, **more}
    return run("lcm", folder=folder, **settings)
