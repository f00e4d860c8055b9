"""How fast this machine trains and decodes: `culm bench`. `bench/peers.py` sets others beside it.

S   8 layers, width 512, 26.4 million parameters, rows of 512 tokens
T   4 layers, width 128, bytes as tokens, rows of 256
L   30 layers, width 576, the shape of SmolLM-135M
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from culm.adapt.quantize import Quantizer
from culm.batch import Batch, counts_of
from culm.config import SettingError, parse
from culm.device import choose_device, choose_precision
from culm.dtype import DTYPES
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.backend import place
from culm.model.mlp.gated import SwiGLU
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextTokenObjective
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.parallelize import parallelize
from culm.train.malloc import keep_freed_memory
from culm.train.memory import peak_bytes, reset_peak
from culm.train.trainer import Trainer

PROMPT, NEW = 128, 128  # tokens of a decoding trial
ROUNDS = 3


@dataclass(frozen=True)
class Size:
    """A model and the rows of a training step."""

    model: TransformerConfig
    rows: int


def _size(vocabulary: int, width: int, layers: int, context: int, *parts: int, rows: int) -> Size:
    heads, kv_heads, hidden = parts
    attention, mlp = GQA(heads=heads, kv_heads=kv_heads), SwiGLU(hidden=hidden)
    model = TransformerConfig(
        vocabulary=vocabulary, width=width, layers=layers, context=context,
        attention=(attention,), mlp=(mlp,),
    )  # fmt: skip
    return Size(model, rows)


SIZES = {
    "S": _size(8192, 512, 8, 512, 8, 2, 1376, rows=8),
    "T": _size(256, 128, 4, 256, 8, 8, 352, rows=32),
    "L": _size(49152, 576, 30, 512, 9, 3, 1536, rows=2),
}


def tokens_of(size: Size, device: torch.device | str = "cpu") -> torch.Tensor:
    """Random ids, (rows, context + 1): the time of a step does not depend on what they are."""
    shape = (size.rows, size.model.context + 1)
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(0, size.model.vocabulary, shape, generator=drawn).to(device)


class SameBatch:
    """Gives the loop the same batch at every step."""

    def __init__(self, tokens: torch.Tensor) -> None:
        positions = torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1).contiguous()
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.batch = Batch(inputs, targets, positions, counts=counts_of(targets))

    fingerprint = ""

    def step(self, number: int) -> list[Batch]:
        return [self.batch]

    def state(self, steps: int) -> dict[str, Tensor]:
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


def trainer_of(size: Size, device: torch.device, compiled: bool = True) -> Callable[[], None]:
    """A function that makes one training step of ours, as a run makes it."""
    model = place(size.model.build(device=device), device, DTYPES[choose_precision(device)])
    objective = NextTokenObjective(model.train())
    optimizer = AdamW().build(objective)
    trainer = Trainer(parallelize(objective, compile=compiled), optimizer, Constant())
    batches = SameBatch(tokens_of(size))

    def step() -> None:
        trainer.fit(batches, 1)

    return step


def decoder_of(
    size: Size, weights: str, rows: int, device: torch.device, fused: bool = True
) -> Callable[[], float]:
    """A function that answers `rows` prompts and gives the seconds of decoding alone.

    weights: bf16, or the kind of a quantiser.
    """
    model = size.model.build(device=device).eval().to(torch.bfloat16)
    place(model, device, torch.bfloat16)
    if weights != "bf16":
        parse(Quantizer, weights, "weights").apply(model)
    return decoding(model, rows, PROMPT, NEW, fused)


def decoding(
    model: Transformer, rows: int, prompt: int, new: int, fused: bool = True
) -> Callable[[], float]:
    """A function that makes `new` tokens after each of `rows` prompts of `prompt` tokens.

    It gives the seconds of decoding alone, in which new - 1 tokens of each row are made.
    """
    engine = Engine(model, rows, prompt + new, fused=fused)
    tokens = tuple(i % model.config.vocabulary for i in range(prompt))

    def decode() -> float:
        for row in range(rows):
            first = row % model.config.vocabulary
            engine.add(Request((first, *tokens[1:]), new, Sampling(temperature=0)))
        engine.step()  # reads the prompts
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        return time.perf_counter() - began

    return decode


def seconds_of(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def show_bench(what: str, size: str, rounds: int = ROUNDS) -> None:
    """Print tokens per second, milliseconds a step and peak memory; medians of `rounds`.

    Raises:
        SettingError: neither train nor decode, or no such size.
    """
    if size not in SIZES:
        raise SettingError(f"size: {size!r} is not one of {', '.join(SIZES)}")
    if what not in ("train", "decode"):
        raise SettingError(f"what: {what!r} is neither train nor decode")
    keep_freed_memory()
    reset_peak()
    bench = _show_training if what == "train" else _show_decoding
    bench(size, choose_device("auto"), rounds, Console(highlight=False, soft_wrap=True))


def _show_training(letter: str, device: torch.device, rounds: int, console: Console) -> None:
    size = SIZES[letter]
    step = trainer_of(size, device)
    first = seconds_of(step)
    usual = statistics.median(seconds_of(step) for _ in range(rounds))
    _say(console, f"train {letter}", size.rows * size.model.context / usual, usual)
    console.print(f"The first step, which compiles, took {first:.1f} s.")


def _show_decoding(letter: str, device: torch.device, rounds: int, console: Console) -> None:
    whole: dict[int, float] = {}  # seconds a step in bf16, by rows
    for weights in ("bf16", "int8", "int4"):
        for rows in (1, 8):
            decode = decoder_of(SIZES[letter], weights, rows, device)
            decode()
            usual = statistics.median(decode() for _ in range(rounds)) / (NEW - 1)
            ratio = whole.setdefault(rows, usual) / usual
            label = f"decode {letter} {weights}, {rows} rows"
            _say(console, label, rows / usual, usual, f"   {ratio:.2f} of bf16")


def _say(console: Console, label: str, rate: float, seconds: float, beside: str = "") -> None:
    speed = f"{rate:>10,.0f} tokens/s{seconds * 1000:>10,.2f} ms a step{beside}"
    console.print(f"{label:<26}{speed}   {peak_bytes() / 2**20:,.0f} MiB at most")
