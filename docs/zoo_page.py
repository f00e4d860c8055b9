"""Writes docs/reference/zoo.md from culm/configs/model: `python docs/zoo_page.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from culm.compose import CONFIGS, read_yaml
from culm.config import parse
from culm.convert.models import Model
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.adamw import AdamW
from culm.parallel.parallelize import parallelize
from culm.plan.needs import Step, needs_of
from culm.verbs.format import count, size

PAGE = Path(__file__).parent / "reference" / "zoo.md"
ROWS = 2  # a step of two micro-batches of one row: the smallest that accumulates
HEAD = """\
# Model configs

Written by `python docs/zoo_page.py` from `culm/configs/model`. Choose one by name, such as
`model=tiny`, and change any setting of it, such as `model.layers=8`. These are configs: Culm
publishes no trained weights. [Models](models.md) lists the families whose weights it reads.

Training: weights in fp32, gradients, AdamW's states and activations in bf16, for one row of the
context and `train.activation_checkpointing=full`, as `culm plan` counts them for one process on a
CPU; Python and its libraries come on top. To serve: weights in bf16, without the cache.
`culm plan pretrain model=NAME data.path=books/` has the numbers for your rows and machine.

| name | parameters | width, layers | context | vocabulary | for | training | to serve |
|---|--:|--:|--:|--:|---|--:|--:|
"""
PURPOSES = {
    "nano": "the quickstart; minutes on a laptop",
    "tiny": "minutes of a GPU, an evening of a CPU",
    "small": "a night of a laptop; the speed tables",
    "125m": "[one GPU](../recipes/one_gpu.md); the size of GPT-2",
    "350m": "one GPU",
    "1b": "one or several GPUs",
    "llm-v1": "1B over tiktoken's cl100k; its plan is `culm plan llm-v1`",
    "3b": "several GPUs",
    "7b": "[eight GPUs](../recipes/eight_gpus.md)",
    "13b": "several machines",
    "32b": "[many machines](../recipes/many_machines.md)",
    "moe-tiny": "[mixture of experts](../recipes/experts.md) on a laptop",
    "demo": "the smallest demonstration, over bytes",
    "bytes": "[models of bytes](../concepts/bytes.md), the baseline",
    "entropy": "the small model of `blt`",
    "megabyte": "[patches of fixed size](../concepts/bytes.md)",
    "spacebyte": "[patches that start at words](../concepts/bytes.md)",
    "hnet": "[learned patches](../concepts/bytes.md)",
    "blt": "[patches by entropy](../concepts/bytes.md)",
    "hyperbolic": "[hyperbolic space](../concepts/hyperbolic.md)",
    "concepts": "[sentence autoencoder](../concepts/concepts.md)",
}
NO_PLAN = ("blt", "concepts")  # one reads another model, the other has an objective of its own


def row(name: str) -> str:
    """The line of a config."""
    values = read_yaml(CONFIGS / "model" / f"{name}.yaml")
    width, layers = values["width"], values["layers"]
    cells = [f"{width:,}, {layers}", f"{values['context']:,}", f"{values['vocabulary']:,}"]
    if name in NO_PLAN:
        about = (CONFIGS / "model" / f"{name}.yaml").read_text(encoding="utf-8").split(" ")[1]
        numbers = (f"{about[:-1]} million", "its page", "its page")
    else:
        numbers = planned(parse(Model, values, "model"))
    parameters, training, serving = numbers
    return f"| `{name}` | {' | '.join([parameters, *cells, PURPOSES[name], training, serving])} |"


def planned(config: Any) -> tuple[str, str, str]:
    """Parameters, memory of training one row at once, and memory of the weights in bf16."""
    model = config.build(device="meta")
    model.set_backend("blocks")
    model.dtype = torch.bfloat16
    objective = NextTokenObjective(NextToken(), model)
    parallelize(objective, activation_checkpointing="full")
    step = Step(context=config.context, batch_size=ROWS, at_once=1)
    needs = needs_of(objective, AdamW(), step, count_flops=False)
    used = f", {count(needs.parameters - needs.idle)} a token" if needs.idle else ""
    return f"{count(needs.parameters)}{used}", size(needs.memory.total), size(2 * needs.parameters)


def page() -> str:
    """The text of the page, in the order of PURPOSES."""
    return HEAD + "\n".join(row(name) for name in PURPOSES) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
