"""Speculative decoding beside plain decoding, of a model that was trained with `model.mtp`.

    culm train demo model.mtp.depth=3 folder=runs/ahead
    python bench/speculation.py runs/ahead "def read(" "import os"

Both take turns, round by round; the table shows the median of the ratios, and how many tokens a
step gave. The fused step of a CPU knows plain decoding only, so it is a third contender in bf16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

import culm
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.language_model import LanguageModel

CONTENDERS = {"plain": (False, False), "fused": (False, True), "speculative": (True, False)}


def decoded(model: LanguageModel, requests: Sequence[Request], name: str) -> tuple[float, float]:
    """Seconds a token, and tokens of a row in a step, without the reading of the prompts."""
    speculate, fused = CONTENDERS[name]
    length = max(len(r.prompt) + r.tokens for r in requests)
    engine = Engine(model.model, len(requests), length, speculate=speculate, fused=fused)
    for request in requests:
        engine.add(request)
    engine.step()
    rows = tokens = 0
    began = time.perf_counter()
    while engine.busy:
        rows += len(engine.running)
        tokens += len(engine.step())
    return (time.perf_counter() - began) / tokens, tokens / rows


def rounds(
    models: dict[str, LanguageModel], requests: Sequence[Request], count: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """Every contender once, `count` times, after a round to warm up."""
    for number in range(count + 1):
        took = {name: decoded(model, requests, name) for name, model in models.items()}
        if number:
            yield took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="its folder")
    parser.add_argument("prompts", nargs="+", help="texts to continue, together")
    parser.add_argument("--tokens", type=int, default=192, help="that each is continued by")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    plain = culm.load(given.model, dtype=given.dtype)
    ahead = culm.load(given.model, dtype=given.dtype, speculate=True)
    models = {"plain": plain, "fused": plain, "speculative": ahead}
    if given.dtype != "bfloat16":
        del models["fused"]
    print("| temperature | contender | to plain | tokens of a row in a step |\n|--:|---|--:|--:|")
    for temperature in (0.0, 0.7, 1.0):
        requests = [
            Request(tuple(plain.prompt_ids(text)), given.tokens, Sampling(temperature, seed=i))
            for i, text in enumerate(given.prompts)
        ]
        done = list(rounds(models, requests, given.rounds))
        for name in models:
            ratio = statistics.median(each["plain"][0] / each[name][0] for each in done)
            print(f"| {temperature} | {name} | {ratio:.2f} | {done[-1][name][1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
