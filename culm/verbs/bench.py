"""`culm bench`: how fast this machine trains and decodes; for peers see `bench/peers.py`.

S   8 layers, width 512, 26.4 million parameters, sequences of 512 tokens
T   4 layers, width 128, bytes as tokens, sequences of 256
L   30 layers, width 576, the shape of SmolLM-135M
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps

import torch
from rich.console import Console
from torch import Tensor

from culm import log
from culm.adapt.quantize import Quantizer
from culm.batch import Batch, counts_of
from culm.config import SettingError, parse
from culm.convert.weights import set_precision
from culm.device import choose_device, choose_precision
from culm.dtype import DTYPES
from culm.log import progress
from culm.malloc import keep_freed_memory
from culm.model.attention.gqa import GQA
from culm.model.backend import place
from culm.model.mlp.gated import SwiGLU
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.parallelize import parallelize
from culm.plan.timing import decoding_trial, seconds_of
from culm.train.memory import peak_bytes, reset_peak
from culm.train.trainer import Trainer
from culm.train.update import Update

PROMPT, NEW = 128, 128  # tokens of a decoding trial
ROUNDS = 3
WEIGHTS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Size:
    """A model and the number of sequences of a training step."""

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
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, size.model.vocabulary, shape, generator=generator).to(device)


class SameBatch:
    """Returns the same batch at every step."""

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
    """A function that makes one training step, as a run does."""
    model = place(size.model.build(device=device), device, DTYPES[choose_precision(device)])
    objective = NextTokenObjective(NextToken(), model.train())
    optimizer = AdamW().build(objective)
    parallel = parallelize(objective, compile=compiled)
    trainer = Trainer(Update(parallel, optimizer), Constant())
    batches = SameBatch(tokens_of(size))

    def step() -> None:
        trainer.fit(batches, 1)

    return step


def decoder_of(
    size: Size, weights: str, rows: int, device: torch.device, fused: bool = True
) -> Callable[[], float]:
    """A function that continues `rows` prompts and returns the seconds of decoding alone.

    weights: bf16, or the kind of a quantiser.
    """
    return decoding_trial(model_of(size, weights, device), rows, PROMPT, NEW, fused)


def model_of(size: Size, weights: str, device: torch.device) -> Transformer:
    """A random model. weights: bf16, or the kind of a quantiser."""
    model = size.model.build(device=device).eval()
    set_precision(model, torch.bfloat16)
    place(model, device, torch.bfloat16)
    if weights != "bf16":
        parse(Quantizer, weights, "weights").apply(model)
    return model


@dataclass(frozen=True)
class Speed:
    """One measurement. seconds: of a step. note: for people."""

    what: str
    size: str
    tokens: int
    seconds: float
    rows: int
    weights: str = ""
    note: str = ""

    def show(self, console: Console, json: bool) -> None:
        """One line, for people or as a JSON object."""
        rate, peak = self.tokens / self.seconds, peak_bytes()
        if json:
            facts = {"what": self.what, "size": self.size, "rows": self.rows}
            facts |= {"weights": self.weights} if self.weights else {}
            facts |= {"tokens_per_second": round(rate, 1), "seconds_per_step": self.seconds}
            print(dumps(facts | {"peak_bytes": peak}), flush=True)
            return
        label = f"{self.what} {self.size}"
        label += f" {self.weights}, {self.rows} rows" if self.weights else ""
        speed = f"{rate:>10,.0f} tokens/s{self.seconds * 1000:>10,.2f} ms per step{self.note}"
        console.print(f"{label:<26}{speed}   peak {peak / 2**20:,.0f} MiB")


def show_bench(
    what: str,
    size: str,
    rows: int | None = None,
    weights: str | None = None,
    json: bool = False,
    rounds: int = ROUNDS,
) -> None:
    """Print tokens per second, milliseconds per step and peak memory; medians of `rounds`.

    rows, weights: of decoding; one of them alone, instead of all. json: a JSON object a line.

    Raises:
        SettingError: neither train nor decode, or no such size or weights.
    """
    if size not in SIZES:
        raise SettingError(f"size: {size!r} is not one of {', '.join(SIZES)}")
    if what not in ("train", "decode"):
        raise SettingError(f"what: {what!r} is neither train nor decode")
    if weights is not None and weights not in WEIGHTS:
        raise SettingError(f"weights: {weights!r} is not one of {', '.join(WEIGHTS)}")
    if what == "train" and (rows is not None or weights is not None):
        raise SettingError(f"{'rows' if weights is None else 'weights'}: only of decode")
    keep_freed_memory()
    reset_peak()
    log.say(f"Measuring {what}, model {size}: the first result takes up to some minutes.")
    device, console = choose_device("auto"), Console(highlight=False, soft_wrap=True)
    if what == "train":
        speeds = _training(size, device, rounds)
    else:
        counts, kinds = (rows,) if rows else (1, 8), (weights,) if weights else WEIGHTS
        speeds = _decoding(size, counts, kinds, device, rounds)
    for speed in speeds:
        speed.show(console, json)


def _training(letter: str, device: torch.device, rounds: int) -> Iterator[Speed]:
    size = SIZES[letter]
    step = trainer_of(size, device)
    with progress("bench", rounds + 1, "steps") as bar:
        first = seconds_of(step)
        bar.advance(1)
        times = []
        for _ in range(rounds):
            times.append(seconds_of(step))
            bar.advance(1)
    note = f"   the first step, which compiles, {first:.1f} s"
    tokens = size.rows * size.model.context
    yield Speed("train", letter, tokens, statistics.median(times), size.rows, note=note)


def _decoding(
    letter: str, counts: Sequence[int], kinds: Sequence[str], device: torch.device, rounds: int
) -> Iterator[Speed]:
    baseline: dict[int, float] = {}  # seconds per step of the first kind, by rows
    for weights in kinds:
        for rows in counts:
            decode = decoder_of(SIZES[letter], weights, rows, device)
            decode()
            usual = statistics.median(decode() for _ in range(rounds)) / (NEW - 1)
            note = f"   {baseline.setdefault(rows, usual) / usual:.2f} x {kinds[0]}"
            yield Speed("decode", letter, rows, usual, rows, weights, note)
