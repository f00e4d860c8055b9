"""A server under load, compared with llama.cpp's server and with batches of transformers.

    python bench/serving.py --llama-server PATH [--size S] [--parallel 8 32] [--rounds 3]

256 requests of mixed lengths arrive at random (Poisson, as fast as `--rate` says) and are streamed
to one client from each server in turn, round by round. Both servers have the same random weights in
bf16, the same slots and threads, and greedy sampling. transformers answers the same requests in
batches that wait for their longest answer: static batching, without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2 as httpx
import torch

from culm.convert import native
from culm.convert.export import export
from culm.tokenizer.bytes import Bytes
from culm.verbs.bench import SIZES, Size

CONTEXT = 512
LETTERS = range(97, 123)


@dataclass(frozen=True)
class Asked:
    """A request. at: seconds after the first one. prompt: its text. tokens: of the answer."""

    at: float
    prompt: str
    tokens: int


@dataclass(frozen=True)
class Measured:
    """seconds: to the first token of a request, and between two tokens of it."""

    first: float
    between: float


def load_of(count: int, rate: float, seed: int) -> list[Asked]:
    """Requests with prompts of 16 to 256 bytes and answers of 16 to 128 tokens."""
    chance, at, asked = random.Random(seed), 0.0, list[Asked]()
    for _ in range(count):
        text = "".join(chance.choices("etaoin shrdlu", k=chance.randint(16, 256)))
        asked.append(Asked(at, text, chance.randint(16, 128)))
        at += chance.expovariate(rate)
    return asked


def tokens_of(load: list[Asked]) -> int:
    return sum(one.tokens for one in load)


def write_model(size: Size, folder: Path) -> None:
    """Random weights of which greedy sampling takes letters alone, so that every token is text."""
    shape = size.model.model_copy(update={"context": CONTEXT, "vocabulary": 262})
    model = shape.build()
    with torch.no_grad():
        others = [id for id in range(shape.vocabulary) if id not in LETTERS]
        model.embed.weight[others] *= 0.01  # tied: their logits are near 0
    native.save(model, Bytes(specials=True).build(), folder)


# -- servers -------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(stack: ExitStack, command: list[str], port: int, ready: str) -> str:
    """The URL of a server, which ends with the stack."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{command[0]} has ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url + ready, timeout=2):
                return url
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{command[0]} does not answer")


def culm_server(stack: ExitStack, folder: Path, slots: int) -> str:
    port, patient = free_port(), folder.with_name("serve.yaml")
    patient.write_text("{waiting: 1000, queue_seconds: 600, answer_seconds: 600}\n")
    command = [sys.executable, "-m", "culm", "serve", str(folder), "--port", str(port),
               "--slots", str(slots), "--dtype", "bfloat16", "--config", str(patient)]  # fmt: skip
    return started(stack, command, port, "/health/ready")


def llama_server(stack: ExitStack, path: str, gguf: Path, slots: int) -> str:
    port, threads = free_port(), str(torch.get_num_threads())
    command = [path, "-m", str(gguf), "--port", str(port), "-np", str(slots), "-c",
               str(slots * CONTEXT), "-t", threads, "-tb", threads, "--no-webui"]  # fmt: skip
    return started(stack, command, port, "/health")


# -- the client ----------------------------------------------------------------------------------


async def ask(client: httpx.AsyncClient, url: str, asked: Asked, start: float) -> Measured:
    """Stream one answer. The time to its first token counts from its arrival."""
    await asyncio.sleep(max(start + asked.at - time.perf_counter(), 0.0))
    body = {
        "model": "model", "prompt": asked.prompt, "max_tokens": asked.tokens, "stream": True,
        "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    began, times = time.perf_counter(), list[float]()
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if event["choices"] and event["choices"][0]["text"]:
                    times.append(time.perf_counter())
    if not times:
        raise RuntimeError(f"{url}: an answer without text")
    return Measured(times[0] - began, (times[-1] - times[0]) / max(asked.tokens - 1, 1))


async def served(url: str, load: list[Asked]) -> tuple[float, list[Measured]]:
    """Seconds until the last answer is complete, and what each request met."""
    limits = httpx.Limits(max_connections=len(load))
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        start = time.perf_counter()
        found = await asyncio.gather(*(ask(client, url, one, start) for one in load))
        return time.perf_counter() - start, found


def static_batches(folder: Path, load: list[Asked], rows: int) -> float:
    """Seconds in which transformers answers all, in batches that wait for their longest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    start = time.perf_counter()
    for at in range(0, len(load), rows):
        batch = load[at : at + rows]
        longest = max(len(one.prompt) for one in batch)
        ids = [[0] * (longest - len(one.prompt)) + list(one.prompt.encode()) for one in batch]
        seen = [[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in batch]
        tokens = max(one.tokens for one in batch)
        with torch.inference_mode():
            model.generate(
                torch.tensor(ids), attention_mask=torch.tensor(seen), do_sample=False,
                pad_token_id=0, eos_token_id=None, min_new_tokens=tokens, max_new_tokens=tokens,
            )  # fmt: skip
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------


def compare(given: argparse.Namespace, folder: Path, slots: int) -> None:
    """Print the table of one number of slots."""
    # A server may remember prompts, so that no round repeats those of another.
    loads = [load_of(given.requests, given.rate, seed) for seed in range(given.rounds)]
    with ExitStack() as stack:
        urls = {"culm": culm_server(stack, folder / "model", slots)}
        if given.llama_server:
            gguf = folder / "model.gguf"
            urls["llama.cpp"] = llama_server(stack, given.llama_server, gguf, slots)
        warm = [replace(one, at=0.0) for one in load_of(slots, given.rate, given.rounds)]
        rates: dict[str, list[float]] = {name: [] for name in urls}
        met: dict[str, list[Measured]] = {name: [] for name in urls}
        for url in urls.values():
            asyncio.run(served(url, warm))
        for load in loads:
            for name, url in urls.items():
                spent, found = asyncio.run(served(url, load))
                rates[name].append(tokens_of(load) / spent)
                met[name] += found
    if given.static:
        spent = static_batches(folder / "hf", loads[0], slots)
        rates["transformers, static batches"] = [tokens_of(loads[0]) / spent]
    columns = "tokens/s | culm to it | first token, p50, p95 | between tokens, p50, p95"
    print(f"\n| {given.size}, {slots} slots, {len(load)} requests | {columns} |")
    print("|---|--:|--:|--:|--:|")
    for name, own in rates.items():
        ratios = [culm / one for culm, one in zip(rates["culm"], own, strict=False)]
        cells = [f"{statistics.median(own):,.0f}", f"{statistics.median(ratios):.2f}"]
        for what in ("first", "between"):
            values = sorted(getattr(one, what) for one in met.get(name, ()))
            cells.append(percentiles(values) if values else "-")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def percentiles(values: list[float]) -> str:
    """In milliseconds. values: sorted."""
    middle, high = (values[int(share * (len(values) - 1))] for share in (0.5, 0.95))
    return f"{1000 * middle:,.1f} ms, {1000 * high:,.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-server", help="llama.cpp's server program")
    parser.add_argument("--size", choices=tuple(SIZES), default="S")
    parser.add_argument("--parallel", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rate", type=float, default=50.0, help="requests that arrive in a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--static", action="store_true", help="measure static batches too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(SIZES[given.size], folder / "model")
        if given.llama_server:
            export(folder / "model", folder / "model.gguf", "bf16")
        if given.static:
            export(folder / "model", folder / "hf")
        for slots in given.parallel:
            compare(given, folder, slots)


if __name__ == "__main__":
    main()
