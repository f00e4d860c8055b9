"""What decoding with few bits costs in accuracy, here and in llama.cpp.

    python bench/accuracy.py FOLDER TEXT       # a trained model and a text that it has not seen

One token after the other is put into the cache, as an answer is decoded; where it is full, the next
part of the text begins with an empty one. The table shows, for each kind of weights, the divergence
KL(fp32 || kind) of the next token in nats, and the perplexity; the second one the differences to
llama.cpp's weights of as many bits, token by token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peers_llama_cpp import LlamaCpp
from torch import Tensor

from culm.adapt.quantize import Int8, Quantizer
from culm.config import parse
from culm.convert.load import read
from culm.convert.weights import set_precision
from culm.engine.fused import fused_decoder

KINDS = {
    "culm": ("bf16", "int8", "int4", "int4, int8 head"),
    "llama.cpp": ("bf16", "q8_0", "q4_0"),
}
Step = Callable[[int, int], Tensor]  # a token and its position -> logits (V,) of the next


def culm_step(folder: Path, weights: str, length: int) -> Step:
    model, _ = read(folder, "cpu", torch.float32)
    kind, *head = weights.split(", int8 ")
    if kind != "bf16":
        parse(Quantizer, kind, "weights").apply(model)
    if head:
        Int8(targets=("head",)).apply(model)
    set_precision(model, torch.bfloat16)
    model.dtype = torch.bfloat16
    decoder = fused_decoder(model, model.cache(1, length))
    if decoder is None:
        raise SystemExit("this machine or model has no fused step")
    return lambda token, place: decoder([token], [place])[0]


def llama_cpp_step(folder: Path, kind: str, length: int) -> Step:
    model = LlamaCpp(folder, kind, prompt=length)

    def step(token: int, place: int) -> Tensor:
        model.read([[token]], place)
        return torch.from_numpy(model.logits(0).copy())

    return step


@torch.inference_mode()
def rows(folder: Path, text: str, tokens: int) -> Iterator[tuple[str, Tensor, float]]:
    """Name, divergences (N,) and perplexity of each kind."""
    model, tokenizer = read(folder, "cpu", torch.float32)
    size, ids = model.config.context, tokenizer.encode(text)[: tokens + 1]
    parts = [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]
    exact = torch.cat([model(torch.tensor([part[:-1]]))[0] for part in parts]).log_softmax(-1)
    targets = torch.tensor(ids[1:])[:, None]
    yield "fp32", torch.zeros(len(exact)), float(exact.gather(1, targets).mean().neg().exp())
    for name, make in (("culm", culm_step), ("llama.cpp", llama_cpp_step)):
        for kind in KINDS[name]:
            logits = [
                step(token, place)
                for part in parts
                for step in [make(folder, kind, size)]
                for place, token in enumerate(part[:-1])
            ]
            found = torch.stack(logits)[:, : exact.shape[1]].log_softmax(-1)
            divergences = (exact.exp() * (exact - found)).sum(-1)
            perplexity = float(found.gather(1, targets).mean().neg().exp())
            yield f"{name}, {kind}", divergences, perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    given = parser.parse_args()
    text, found = given.text.read_text(encoding="utf-8"), dict[str, Tensor]()
    print("| weights | divergence, nats | perplexity |\n|---|--:|--:|")
    for name, divergences, perplexity in rows(given.folder, text, given.tokens):
        print(f"| {name} | {float(divergences.mean()):.2e} | {perplexity:.3f} |", flush=True)
        found[name] = divergences
    print("\n| beside | difference, nats | two standard errors |\n|---|--:|--:|")
    for ours, theirs in zip(KINDS["culm"][:3], KINDS["llama.cpp"], strict=True):
        apart = found[f"culm, {ours}"] - found[f"llama.cpp, {theirs}"]
        error = 2 * float(apart.std()) / len(apart) ** 0.5
        print(f"| {ours}, {theirs} | {float(apart.mean()):+.1e} | {error:.1e} |")


if __name__ == "__main__":
    main()
