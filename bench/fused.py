"""The fused decoding step against PyTorch, in bf16: plain, with a cache in int8, with an adapter.

python bench/fused.py --size S --rows 1 8
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch

from culm.adapt.lora import LoRA
from culm.malloc import keep_freed_memory
from culm.plan.timing import decoding_trial
from culm.verbs.bench import NEW, PROMPT, SIZES, model_of

CPU = torch.device("cpu")


def trials(size: str, rows: int, fused: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """Decoding of `rows` prompts, by what is served."""
    model = model_of(SIZES[size], "bf16", CPU)
    yield "plain", decoding_trial(model, rows, PROMPT, NEW, fused)
    yield "int8 cache", decoding_trial(model, rows, PROMPT, NEW, fused, "int8")
    adapted = model_of(SIZES[size], "bf16", CPU)
    LoRA().apply(adapted, 0)
    yield "adapter", decoding_trial(adapted, rows, PROMPT, NEW, fused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    print("rows what        ms per step: fused  PyTorch  ratio", flush=True)
    for rows in options.rows:
        pairs = zip(
            trials(options.size, rows, True), trials(options.size, rows, False), strict=True
        )
        for (what, fused), (_, plain) in pairs:
            fused(), plain()
            times = [(fused(), plain()) for _ in range(options.rounds)]
            own, other = (statistics.median(each) / (NEW - 1) for each in zip(*times, strict=True))
            line = f"{rows:4} {what:12}{own * 1e3:18.2f}{other * 1e3:9.2f}{other / own:7.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
