"""Training on one GPU: tokens per second, model FLOPs utilisation, peak memory, and ablations.

    python bench/gpu.py                            # llm-v1 in bf16, rows of 2,048 tokens
    python bench/gpu.py --only culm "culm, flash3"
    python bench/gpu.py --model demo --rows 2 --context 64 --device cpu --precision fp32

Contenders are Culm as a run trains it, Culm with one part exchanged, and two that are written here
in plain PyTorch: the whole model compiled under autocast, as nanoGPT has it, and FSDP2 around
compiled blocks. Each is a process of its own; all start with the same weights and learn the same
rows, so their losses must agree. FLOPs are 6 a weight and 12 a layer, channel and token of the row
for attention (arXiv 2204.02311, appendix B), without what is computed again. Exits with 1 where a
loss differs, a contender fails that should run here, or Culm misses the aim of a known GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from gpu_contenders import CONTENDERS, Learning, Task

from culm.compose import compose
from culm.config import parse
from culm.device import choose_device
from culm.dtype import DTYPES
from culm.model.transformer import TransformerConfig
from culm.plan.target import target_called
from culm.train.memory import peak_bytes, reset_peak

WARM_UP = 3  # steps, of which the first compiles
AGREE = 0.01  # share by which losses may differ: sums in bf16 have another order in each
AIMS = {"H200": 60_000.0}  # tokens per second of llm-v1
# What may be missing on a machine, with a message in place of a row.
OPTIONAL = ("culm, flash", "culm, cudnn", "culm, flex")


class Result(NamedTuple):
    """losses: before the first step and after the last one."""

    seconds: list[float]
    peak: int
    losses: tuple[float, float]


def contend(pipe: Connection, name: str, task: Task, steps: int) -> None:
    """One process: sends a result, or why there is none."""
    torch.set_float32_matmul_precision("high")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            pipe.send(measured(CONTENDERS[name].ready(task), task.device, steps))
    except Exception as error:  # a kernel, a compiler or memory may fail in any way
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")


def measured(learning: Learning, device: torch.device, steps: int) -> Result:
    before = learning.loss()
    for _ in range(WARM_UP):
        learning.step()
    synchronize(device)
    reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        learning.step()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_bytes()
    return Result(seconds, peak, (before, learning.loss()))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def result_of(name: str, task: Task, steps: int) -> Result | str:
    """In a process of its own, whose memory is free again afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=contend, args=(theirs, name, task, steps))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return "the process ended without a result"
    finally:
        process.join()


def flops_per_token(model: TransformerConfig) -> float:
    """6 for each weight of a matmul, and 12 for each channel of a query and each token of a row."""
    built = model.build(device="meta")
    weights = sum(p.numel() for p in built.parameters() if p.dim() > 1)
    if not model.tied:  # embeddings are looked up; tied ones are counted as the head
        weights -= built.embed.weight.numel()
    return 6 * weights + 12 * model.layers * model.width * model.context


def differing(results: dict[str, Result]) -> list[str]:
    """Contenders whose losses are not those of the first one."""
    first = next(iter(results.values()), None)
    if first is None:
        return []
    return [
        f"{name}: losses {found.losses[0]:.4f} and {found.losses[1]:.4f}, "
        f"and not {first.losses[0]:.4f} and {first.losses[1]:.4f}"
        for name, found in results.items()
        if any(abs(a - b) > AGREE * abs(b) for a, b in zip(found.losses, first.losses, strict=True))
    ]


def show(name: str, found: Result, tokens: int, flops: float, peak: float | None) -> float:
    """A row of the table; gives tokens per second."""
    rate = tokens / statistics.median(found.seconds)
    utilisation = "" if peak is None else f"{rate * flops / peak:.1%}"
    spread = statistics.quantiles(found.seconds, n=4) if len(found.seconds) > 1 else found.seconds
    usual, least, most = (
        1e3 * x for x in (statistics.median(found.seconds), spread[0], spread[-1])
    )
    steps = f"{usual:,.1f} ({least:,.1f} - {most:,.1f})"
    memory = f"{found.peak / 2**30:.1f}"
    losses = f"{found.losses[0]:.3f} to {found.losses[1]:.3f}"
    print(f"| {name} | {rate:,.0f} | {utilisation} | {steps} | {memory} | {losses} |", flush=True)
    return rate


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_of(device: torch.device) -> float | None:
    """bf16 FLOP/s of a GPU in the table of targets; None where it is not there."""
    target = target_called(name_of(device))
    return None if target is None else target.bf16


def compare(
    task: Task, names: list[str], steps: int, peak: float | None
) -> tuple[dict[str, float], list[str]]:
    """Print the table; tokens per second of each contender, and what went wrong."""
    flops, tokens = flops_per_token(task.model), task.ids[:, 1:].numel()
    rows, context = task.ids[:, 1:].shape
    print(
        f"{rows} rows of {context} tokens, {flops / 1e9:.2f} GFLOPs a token, "
        f"{name_of(task.device)}, PyTorch {torch.__version__}\n\n"
        "| contender | tokens/s | MFU | ms per step (quartiles) | peak GiB | loss |\n"
        "|---|--:|--:|--:|--:|--:|",
        flush=True,
    )
    results, rates, failed = dict[str, Result](), dict[str, float](), list[str]()
    for name in names:
        found = result_of(name, task, steps)
        if isinstance(found, str):
            print(f"| {name} | {found} | | | | |", flush=True)
            failed += [] if name.startswith(OPTIONAL) else [f"{name}: {found}"]
        else:
            results[name] = found
            rates[name] = show(name, found, tokens, flops, peak)
    return rates, failed + differing(results)


def missed(model: str, device: torch.device, rates: dict[str, float]) -> list[str]:
    """The aim of this GPU, if there is one and Culm is below it."""
    aims = [aim for gpu, aim in AIMS.items() if gpu in name_of(device) and model == "llm-v1"]
    return [
        f"culm: {rates['culm']:,.0f} tokens/s; the aim is {aim:,.0f}"
        for aim in aims
        if rates.get("culm", aim) < aim
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llm-v1", help="one of culm/configs/model")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--peak", type=float, help="FLOP/s of a device that is in no table")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    given = parser.parse_args()
    device = choose_device(given.device)
    values = {"vocabulary": 256, **compose(given.model, "model").values, "context": given.context}
    model = parse(TransformerConfig, values)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocabulary, (given.rows, given.context + 1), generator=generator)
    task = Task(model, ids, device, DTYPES[given.precision])
    rates, failed = compare(task, given.only, given.steps, given.peak or peak_of(device))
    failed += missed(given.model, device, rates)
    print("\n" + ("\n".join(failed) or "All contenders ran and agree."))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
