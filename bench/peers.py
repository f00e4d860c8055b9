"""Training and decoding compared with other libraries, each in its best setting on a CPU.

    python bench/peers.py                                  # every installed library: half an hour
    python bench/peers.py train --size T --rounds 9
    python bench/peers.py decode --size S --rows 8
    python bench/peers.py read --size S --tokens 1024      # a prompt, up to the first token

Every contender is a separate process, warmed up alone. Then they take turns, round by round, so
that a busy moment of the machine affects all; the table shows the median of a contender's rounds,
and of its ratios per round to the peer with the fastest median and to Culm in bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import statistics
from dataclasses import replace
from multiprocessing.connection import Connection

from peers_decoding import DECODE, READ
from peers_training import TRAIN

from culm.train.memory import peak_bytes
from culm.verbs.bench import NEW, SIZES, Size

COUNTED = {"decode": DECODE, "read": READ}
SAME_WIDTH = {  # who reads weights of as many bits
    "culm": "llama_cpp, bf16",
    "culm, int8": "llama_cpp, q8_0",
    "culm, int4": "llama_cpp, q4_0",
    "culm, int4, int8 head": "llama_cpp, q4_0",
}


def contend(pipe: Connection, what: str, name: str, size: Size, count: int) -> None:
    """One process: warm up, then a round for each message; sends seconds and peak bytes."""
    if what == "read":  # the prompt may be longer than the rows of training
        longer = max(size.model.context, count + NEW)
        size = replace(size, model=size.model.model_copy(update={"context": longer}))
    call = TRAIN[name](size) if what == "train" else COUNTED[what][name](size, count)
    for _ in range(2):
        call()
    pipe.send((0.0, peak_bytes()))
    while pipe.recv():
        pipe.send((call(), peak_bytes()))


def compare(what: str, letter: str, count: int, rounds: int, peer: str | None) -> None:
    """Print one table. count: rows that decode, or tokens of a prompt. peer: only this one."""
    size, context = SIZES[letter], multiprocessing.get_context("spawn")
    names = [name for name in (TRAIN if what == "train" else COUNTED[what]) if installed(name)]
    if peer is not None:  # PyTorch's operators are for the whole table: they take most of the time
        names = [one for one in names if one.split(",")[0] in ("culm", peer) and "torch" not in one]
    pipes = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contend, args=(theirs, what, name, size, count), daemon=True).start()
        theirs.close()
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory = {}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            spent, memory[name] = pipe.recv()
            seconds[name].append(spent)
    for pipe in pipes.values():
        pipe.send(False)
    titles = {"decode": f", {count} rows", "read": f", {count} tokens"}
    tokens = {
        "train": size.rows * size.model.context, "decode": count * (NEW - 1), "read": count,
    }[what]  # fmt: skip
    show(f"{what} {letter}{titles.get(what, '')}", seconds, tokens, memory)


def show(title: str, seconds: dict[str, list[float]], tokens: int, memory: dict[str, int]) -> None:
    peers = {name: spent for name, spent in seconds.items() if not name.startswith("culm")}
    best = min(peers, key=lambda name: statistics.median(peers[name])) if peers else None
    columns = "tokens/s | to the best peer | to culm | to llama.cpp of the same width | peak MiB"
    print(f"\n| {title} | {columns} |\n|---|--:|--:|--:|--:|--:|")
    for name, spent in seconds.items():
        rate = tokens / statistics.median(spent)
        others = (best, "culm", SAME_WIDTH.get(name))
        ratios = [ratio(seconds[x], spent) if x in seconds else "-" for x in others]
        peak = f"{memory[name] / 2**20:,.0f}"
        print(f"| {name} | {rate:,.0f} | {' | '.join(ratios)} | {peak} |", flush=True)


def ratio(others: list[float], own: list[float]) -> str:
    """How many times as fast, in the median of the rounds."""
    return f"{statistics.median(a / b for a, b in zip(others, own, strict=True)):.2f}"


def installed(name: str) -> bool:
    return importlib.util.find_spec(name.split(",")[0]) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("train", "decode", "read"))
    parser.add_argument("--size", choices=tuple(SIZES))
    parser.add_argument("--rows", type=int, help="of decoding")
    parser.add_argument("--tokens", type=int, help="of the prompt that is read")
    parser.add_argument("--peer", help="only this library, such as llama_cpp, beside Culm")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    chosen = {"decode": given.rows, "read": given.tokens}
    usual = (("train", "ST", (0,)), ("decode", "SL", (1, 8)), ("read", "SL", (128, 1024)))
    for what, sizes, counts in usual:
        if given.what in (None, what):
            for letter in [given.size] if given.size else sizes:
                for count in [chosen[what]] if chosen.get(what) else counts:
                    compare(what, letter, count, given.rounds, given.peer)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
