"""Time to the first token of a prompt of which all but the end was read before.

    python bench/prefix.py runs/books-chat --tokens 1000

Two engines take turns, one with a prefix cache; each round has a new shared prompt and two requests
that begin with it. The table shows medians over rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import culm
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling


def first_token(engine: Engine, prompt: tuple[int, ...]) -> float:
    """Seconds from a request to its first token."""
    began = time.perf_counter()
    engine.generate([Request(prompt, 1, Sampling(temperature=0))])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="path of a model")
    parser.add_argument("--tokens", type=int, default=1000, help="of the shared prompt")
    parser.add_argument("--own", type=int, default=20, help="tokens of each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    model = culm.load(given.model, dtype=given.dtype)
    length = given.tokens + given.own + 1
    engines = {
        name: Engine(model.model, 2, length, prefix_tokens=tokens)
        for name, tokens in (("none", 0), ("prefix cache", 2 * length))
    }
    chance, took = random.Random(0), {name: [] for name in engines}
    for number in range(given.rounds + 1):
        shared, one, two = (
            tuple(chance.randrange(model.tokenizer.vocabulary) for _ in range(count))
            for count in (given.tokens, given.own, given.own)
        )
        for name, engine in engines.items():
            pair = [first_token(engine, shared + own) for own in (one, two)]
            if number:
                took[name].append(pair)
    for name, pairs in took.items():
        first, second = (statistics.median(each) for each in zip(*pairs, strict=True))
        share = statistics.median(b / a for a, b in pairs)
        print(f"{name:14} first {first:.3f} s, second {second:.3f} s, {share:.1%} of the first")


if __name__ == "__main__":
    main()
