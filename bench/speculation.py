"""Speculative against plain decoding, of a model that was trained with `model.mtp`.

    culm train demo model.mtp.depth=3 folder=runs/ahead
    python bench/speculation.py runs/ahead "def read(" "import os" --text culm/engine/engine.py

They take turns, round by round; the first table shows the median of the ratios, and the tokens per
step. The fused step of a CPU supports plain decoding only, so it is a separate contender.

The second table is for a text: the fraction of the first head's draft tokens that are accepted if
they are sampled with the random number of their position, as the engine does; if they are the most
likely ones; and with rejection sampling, the optimum, which changes the text (arXiv 2211.17192).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import culm
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.text.language_model import LanguageModel

Contender = tuple[LanguageModel, bool]  # and whether the fused step is allowed
ROWS = 32  # of a text


def decoded(contender: Contender, requests: Sequence[Request]) -> tuple[float, float]:
    """Seconds per token, and tokens of a row per step, without the reading of the prompts."""
    model, fused = contender
    length = max(len(r.prompt) + r.max_tokens for r in requests)
    speculate = model.speculate
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
    contenders: dict[str, Contender], requests: Sequence[Request], count: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """Every contender once, `count` times, after a round to warm up."""
    for number in range(count + 1):
        took = {name: decoded(contender, requests) for name, contender in contenders.items()}
        if number:
            yield took


@torch.no_grad()
def scores(model: LanguageModel, text: str) -> tuple[Tensor, Tensor]:
    """Logits (N, V) of the model and of its first head, for the same tokens of a text."""
    width = min(model.context, 256)
    ids = torch.tensor(model.encode(text)[: ROWS * width])
    tokens = ids[: len(ids) // width * width].view(-1, width)
    trunk, first, *_ = model.model.mtp_hidden(tokens)
    logits = [model.model.logits(hidden) for hidden in (trunk[:, 1:], first[:, :-1])]
    return logits[0].flatten(0, 1), logits[1].flatten(0, 1)


def accepted(model: Tensor, head: Tensor, temperature: float) -> tuple[float, float, float]:
    """Fractions by the same number, by the top token and by rejection; logits (N, V) each."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (model, head))
    ends, other = p.cumsum(-1), q.cumsum(-1)  # a number selects the token in whose span it falls
    both = ends.minimum(other) - (ends - p).maximum(other - q)
    most_likely = p.gather(-1, q.argmax(-1, keepdim=True))
    shares = (both.clamp_min(0).sum(-1), most_likely, p.minimum(q).sum(-1))
    return tuple(float(share.mean()) for share in shares)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="its folder")
    parser.add_argument("prompts", nargs="+", help="texts to continue, together")
    parser.add_argument("--max-tokens", type=int, default=192, help="maximum number of new tokens")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path, help="a file, for the second table")
    given = parser.parse_args()
    plain = culm.load(given.model, dtype=given.dtype)
    ahead = culm.load(given.model, dtype=given.dtype, speculate="mtp")
    ngram = culm.load(given.model, dtype=given.dtype, speculate="ngram")
    contenders = {
        "plain": (plain, False), "fused": (plain, True), "mtp": (ahead, False),
        "ngram": (ngram, False),
    }  # fmt: skip
    print("| temperature | contender | to plain | tokens of a row per step |\n|--:|---|--:|--:|")
    for temperature in (0.0, 0.7, 1.0):
        requests = [
            Request(tuple(plain.prompt_ids(text)), given.max_tokens, Sampling(temperature, seed=i))
            for i, text in enumerate(given.prompts)
        ]
        done = list(rounds(contenders, requests, given.rounds))
        for name in contenders:
            ratio = statistics.median(each["plain"][0] / each[name][0] for each in done)
            print(f"| {temperature} | {name} | {ratio:.2f} | {done[-1][name][1]:.2f} |", flush=True)
    if given.text:
        print("\n| temperature | same number | most likely | rejection |\n|--:|--:|--:|--:|")
        both = scores(ahead, given.text.read_text())
        for temperature in (0.7, 1.0, 1.5):
            shares = " | ".join(f"{share:.2f}" for share in accepted(*both, temperature))
            print(f"| {temperature} | {shares} |")


if __name__ == "__main__":
    main()
