"""Tiny runs of every stage, over text that is made here."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from culm.config import parse
from culm.run.settings import RunConfig
from culm.run.train import Result, train

STAGES = (
    "pretrain",
    "fim",
    "diffusion",
    "sft",
    "curriculum",
    "dpo",
    "precomputed",
    "kto",
    "reward",
    "ranking",
    "rating",
    "steps",
    "grpo",
    "dapo",
    "filtered",
    "ppo",
    "shared",
    "distill",
    "gkd",
)
# Each kind of objective once. The other stages are in the grid of tests/parallel/test_grid.py.
CORE = ("sft", "dpo", "reward", "ppo", "gkd")
EVERY_STAGE = [
    name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in STAGES
]
WORDS = (
    "the quick brown fox jumps over a lazy dog and then sleeps all day long in warm grass".split()
)
ON_POLICY = ("grpo", "dapo", "filtered", "ppo", "shared")
TASK = {"kind": "letters", "name": "count", "operation": "count", "shortest": 2, "longest": 3}
LORA = {"kind": "lora", "rank": 4, "alpha": 8}


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Of all models that a finished run wrote, such as `critic/embed.weight`."""
    return {
        f"{file.parent.name}/{name}": weight
        for file in sorted(folder.glob("*/model.safetensors"))
        for name, weight in load_file(file).items()
    }


# What a machine and its load decide, in a line of metrics.jsonl.
MEASURED = {"seconds", "tokens_per_second", "waiting", "peak_bytes", "mfu"}


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what differs when a run is repeated."""
    return {name: value for name, value in line.items() if name not in MEASURED}


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _ranking(chance: random.Random, index: int) -> dict:
    """Two to four answers; two of them may be equally good."""
    answers = [f"{_sentence(chance, 1 + (index * n) % 4)} {n}" for n in range(2 + index % 3)]
    scores = [chance.randrange(3) for _ in answers[1:]]
    return {"prompt": _sentence(chance, 1), "responses": answers, "scores": [3, *scores]}


def _solution(chance: random.Random, index: int) -> dict:
    steps = [_sentence(chance, 1 + (index + n) % 3) for n in range(1 + index % 4)]
    labels = [chance.random() < 0.5 for _ in steps]
    return {"prompt": _sentence(chance, 1), "completions": steps, "labels": labels}


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, chat, pairs, labels, rankings and steps (.jsonl); records of unequal
    length.
    """
    folder, chance = tmp_path_factory.mktemp("corpora"), random.Random(0)
    _write(folder / "text.jsonl", [{"text": _sentence(chance, 2 + i % 17)} for i in range(80)])
    chats, pairs = [], []
    for index in range(40):
        question = {"role": "user", "content": _sentence(chance, 1 + index % 3)}
        answers = [_sentence(chance, 1 + (index * n) % 5) for n in (1, 3)]
        chats.append({"messages": [question, {"role": "assistant", "content": answers[0]}]})
        pairs.append(
            {"prompt": question["content"], "chosen": answers[0] + "!", "rejected": answers[1]}
        )
    _write(folder / "chat.jsonl", chats)
    _write(folder / "pairs.jsonl", pairs)
    labels = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
        for number, pair in enumerate(pairs)
        for name in (("chosen", "rejected") if number % 3 else ("chosen",))
    ]
    _write(folder / "labels.jsonl", labels)
    _write(folder / "rankings.jsonl", [_ranking(chance, index) for index in range(40)])
    _write(folder / "steps.jsonl", [_solution(chance, index) for index in range(40)])
    asked = [(f"How many a are in {'ab' * n}?", str(n)) for n in range(1, 10)]
    _write(folder / "prompts.jsonl", [{"prompt": one, "answer": other} for one, other in asked])
    return folder


Settings = Callable[..., dict[str, Any]]


def go(settings: dict[str, Any], **more: Any) -> Result:
    """Train; more: settings of `train`."""
    trained = {**settings["train"], **more}
    return train(parse(RunConfig, {**settings, "train": trained}))


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def begun(stage: Settings, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that stands at step 4, with checkpoints of steps 2 and 4."""
    settings = stage("sft", steps=4, checkpoint={"every_steps": 2})
    settings["folder"] = str(tmp_path / "run")
    go(settings)
    return settings


@pytest.fixture(scope="session")
def stage(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`stage("dpo", adapter=True, steps=4)`: the settings of a tiny run; more go to `train`."""
    started: dict[str, Path] = {}

    def base() -> str:
        if "base" not in started:
            started["base"] = tmp_path_factory.mktemp("base") / "run"
            data = {"tasks": [TASK], "questions": 300, "format": "chat"}
            settings = {
                **make("pretrain", steps=60, batch_size=8, micro_batch_size=8),
                "data": data,
            }
            settings["folder"] = str(started["base"])
            train(parse(RunConfig, settings))
        return str(started["base"])

    def make(name: str, adapter: bool = False, **more: Any) -> dict[str, Any]:
        rate = (0.05 if adapter else 0.01) / (5 if name in ON_POLICY else 1)
        adamw = {"kind": "adamw", "rate": rate, "weight_decay": 0.0}
        trained: dict[str, Any] = {
            "steps": 3, "batch_size": 4, "micro_batch_size": 2, "precision": "fp32",
            "optimizer": adamw,
            "schedule": "constant", "adapter": LORA if adapter else None, "update_ratio_every": 2,
        }  # fmt: skip
        measures: dict[str, Any] = {"held_out": {"tokens": 200}}
        run: dict[str, Any] = {"device": "cpu", "eval": {"measures": measures}}
        new = name == "pretrain" and not adapter
        if new:
            attention = {"kind": "gqa", "heads": 4, "kv_heads": 2, "qk_norm": "head"}
            run["tokenizer"] = {"kind": "bytes", "specials": True}
            run["model"] = {
                "vocabulary": 262, "width": 32, "layers": 2, "context": 64, "attention": attention,
            }  # fmt: skip
            trained["optimizer"] = {"kind": "muon", "rate": 0.01}
        else:
            run["start"] = base()
        match name:
            case "pretrain":
                run["data"] = {"path": str(corpora / "text.jsonl"), "held_out": 0.1}
                measures["samples"] = {"texts": ["the "], "max_tokens": 3}
            case "diffusion":
                run["data"] = {"path": str(corpora / "text.jsonl"), "held_out": 0.1}
                trained["objective"] = "masked_diffusion"
                measures["samples"] = {"texts": ["the "], "max_tokens": 3}
            case "fim":
                run["start"] = {"path": base(), "fim": True}
                form = {"kind": "document", "fim": {"rate": 0.7}}
                run["data"] = {"path": str(corpora / "text.jsonl"), "format": form}
            case "sft" | "curriculum":
                run["data"] = {"path": str(corpora / "chat.jsonl"), "format": "chat"}
                if name == "curriculum":
                    difficulty = {"kind": "loss", "model": base()}
                    run["data"]["curriculum"] = {"steps": 2, "difficulty": difficulty}
            case "dpo":
                run["data"] = {"path": str(corpora / "pairs.jsonl"), "format": "pair"}
                trained["objective"] = {"kind": "preference", "beta": 0.5}
            case "precomputed":
                run["data"] = {"path": str(corpora / "pairs.jsonl"), "format": "pair"}
                more_of = {"reference": "precomputed", "tail": 0.5}
                trained["objective"] = {"kind": "preference", "beta": 0.5, **more_of}
            case "kto":
                run["data"] = {"path": str(corpora / "labels.jsonl"), "format": "label"}
                trained["objective"] = {"kind": "kto", "beta": 0.5}
            case "distill":
                run["data"] = {"path": str(corpora / "chat.jsonl"), "format": "chat"}
                of = {"teacher": base(), "nll": 0.5, "hidden": 0.1}
                trained["objective"] = {"kind": "distill", **of}
            case "reward":
                run["data"] = {"path": str(corpora / "pairs.jsonl"), "format": "pair"}
                trained["objective"] = "reward"
                run["eval"]["measures"] = {"pairs": {"tokens": 200}}
            case "ranking" | "rating" | "steps":
                files = {"ranking": "rankings", "rating": "labels", "steps": "steps"}
                losses = {"ranking": "plackett_luce", "rating": "regression", "steps": "process"}
                form = "label" if name == "rating" else name
                run["data"] = {"path": str(corpora / f"{files[name]}.jsonl"), "format": form}
                heads = 2 if name == "ranking" else 1
                trained["objective"] = {"kind": "reward", "loss": losses[name], "heads": heads}
                run["eval"]["measures"] = {"pairs": {"tokens": 200}}
            case "ppo" | "shared":
                run["data"] = {"tasks": [TASK]}
                measures["scores"] = {"tasks": [TASK], "questions": 3}
                trained |= {"batch_size": 16, "micro_batch_size": 8}
                more_of = (
                    {"shared": True, "kl_stop": 0.5}
                    if name == "shared"
                    else {"kl_target": 1.0, "kl_horizon": 100}
                )
                trained["objective"] = {"kind": "ppo", "kl": 0.02, **more_of}
                trained["rollout"] = {"group": 2, "max_tokens": 4, "batches": 2, "epochs": 3}
            case "gkd":
                run["data"] = {"tasks": [TASK]}
                measures["scores"] = {"tasks": [TASK], "questions": 3}
                trained |= {"batch_size": 8, "micro_batch_size": 4}
                trained["objective"] = {"kind": "gkd", "teacher": base(), "divergence": "jsd"}
                trained["rollout"] = {"group": 1, "max_tokens": 4}
            case "grpo" | "dapo" | "filtered":
                run["data"] = {"tasks": [TASK]}
                measures["scores"] = {"tasks": [TASK], "questions": 3}
                trained |= {"batch_size": 32, "micro_batch_size": 8}
                variant = "grpo" if name == "filtered" else name
                trained["objective"] = {"kind": "grpo", "variant": variant, "kl": 0.01}
                trained["rollout"] = {"group": 4, "max_tokens": 4}
                if name == "filtered":
                    prompts = {"kind": "prompts", "path": str(corpora / "prompts.jsonl")}
                    run["data"] = {"tasks": [prompts]}
                    trained["rollout"]["curriculum"] = {"low": 0.1, "high": 0.9}
                if name == "dapo":
                    short = {"kind": "length", "longest": 4, "margin": 3, "whiten": True, "clip": 1}
                    trained["reward"] = ["task", {**short, "weight": 0.5}]
        return {**run, "train": {**trained, **more}}

    return make


@pytest.fixture
def run_file(stage: Settings, tmp_path: Path) -> Callable[..., Path]:
    """The same as a file, with a folder of its own."""

    def write(name: str, **more: Any) -> Path:
        label = f"{name}-{len(list(tmp_path.glob('*.yaml')))}"
        path = tmp_path / f"{label}.yaml"
        path.write_text(yaml.safe_dump({"folder": str(tmp_path / label), **stage(name, **more)}))
        return path

    return write
