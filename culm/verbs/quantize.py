"""`culm quantize`: a smaller model, with its loss in quality and its gain in speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from torch import Tensor

from culm.adapt.quantize import Method, Quantizers
from culm.adapt.quantize.linear import QuantizedLinear
from culm.compose import read_value
from culm.config import SettingError, parse
from culm.convert.export import read_whole, size_of, write_made_of, write_quantized
from culm.convert.load import read, refuse_overwrite
from culm.data.calibration import calibration_rows
from culm.eval.divergence import compare
from culm.files import refuse_existing
from culm.model.ability import predicts_text
from culm.plan.timing import decoding_trial
from culm.verbs.format import count, size

NEW = 64  # tokens that are decoded to measure the speed
ROUNDS = 3

T = TypeVar("T")


def show_quantized(
    source: str, out: str, to: str, method: str, text: Sequence[str], device: str,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Quantise a model and print size and speed; with text also the distance to the original.

    Of a model that does not predict the next token from those before it, only the size. overwrite:
    replace an older model there.

    Raises:
        SettingError: the method needs text, or the settings contradict each other.
    """
    quantizers = _given(Quantizers, "to", to)
    how = _given(Method, "method", method)
    if how.calibrated and not text:
        raise SettingError(
            f"calibrate: {how.kind} needs text; name a file, as in --calibrate book.txt"
        )
    refuse_overwrite(source, out)
    refuse_existing(Path(out), overwrite)
    model, tokenizer = read_whole(source, out, device)
    rows = calibration_rows(text, tokenizer, model.config.context) if text else None
    write_quantized(model, tokenizer, Path(out), quantizers, how, rows.seen if rows else None)
    calibrated = [word for path in text for word in ("--calibrate", path)]
    write_made_of(source, out, "quantize", "--to", to, "--method", method, *calibrated)
    speaks = predicts_text(model)
    del model
    lines = _lost(source, out, device, rows.held_out if rows and speaks else None)
    if speaks:
        lines.append(("decoding", _speeds(source, out, device)))
    console = Console(highlight=False, soft_wrap=True)
    for label, value in lines:
        console.print(f"{label:<12}{value}", markup=False)


def _given(kind: type[T], name: str, text: str) -> T:
    """What an option says; errors have the option's own name where it is one word."""
    value = read_value(f"--{name}", text)
    try:
        return parse(kind, value, f"--{name}")
    except SettingError as error:
        if not isinstance(value, str):
            raise
        where, _, rest = str(error).partition(": ")
        raise SettingError(f"--{name}: {rest}" if rest else where) from None


def _lost(source: str, out: str, device: str, rows: Tensor | None) -> list[tuple[str, str]]:
    """Size, and the distance to the original: in fp32, so that only the weights differ."""
    before, after = (read(path, device, torch.float32)[0].eval() for path in (source, out))
    layers = [module for module in after.modules() if isinstance(module, QuantizedLinear)]
    bits = 8 * sum(layer.weight_bytes for layer in layers)
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    unquantised = 2 * sum(parameter.numel() for parameter in before.parameters())
    lines = [
        ("size", f"{size(size_of(Path(out)))} of weights, {size(unquantised)} before in bfloat16"),
        ("bits", f"{bits / weights:.2f} per weight, in {len(layers)} layers"),
    ]
    if rows is None:
        return lines
    found = compare(before, after, rows)
    tokens = f"on {count(found.tokens)} tokens that it was not calibrated on"
    return [
        *lines,
        (
            "perplexity",
            f"{found.changed_perplexity:,.4f}, {found.perplexity:,.4f} before, {tokens}",
        ),
        ("divergence", f"{found.divergence:.5f} nats per token (KL from the original)"),
        ("agreement", f"{100 * found.agreement:.2f} % of the most likely tokens"),
    ]


def _speeds(source: str, out: str, device: str) -> str:
    before, after = (_speed(path, device) for path in (source, out))
    return f"{after:,.0f} tokens/s, {before:,.0f} before"


def _speed(path: str, device: str) -> float:
    """Tokens per second of one sequence, in the fastest precision here."""
    model = read(path, device, "auto", mtp=False)[0].eval()
    new = min(NEW, model.config.context // 2)
    decode = decoding_trial(model, 1, new, new)
    decode()
    return (new - 1) / statistics.median(decode() for _ in range(ROUNDS))
