"""Whether a learning rate that is best for a narrow model is best for a wide one.

    python bench/transfer.py [steps]

Trains models of three widths on the bytes of this Python's standard library, at rates a factor of
two from each other, without a rule and with muP; prints nats per byte on held-out text and marks
the best of each width. One thread, the same batches and the same seed for all.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import torch

from culm.model.attention.gqa import GQA
from culm.model.init import Zero
from culm.model.scaling import MuP
from culm.model.transformer import TransformerConfig
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine

WIDTHS = (64, 128, 256)
RATES = tuple(0.004 * 2**power for power in range(5))
ROWS, CONTEXT, BYTES = 16, 64, 4_000_000
RULE = MuP(base_width=64, base_head_dim=32)


def corpus() -> torch.Tensor:
    """(BYTES,) int64."""
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += path.read_bytes()
    return torch.frombuffer(found[:BYTES], dtype=torch.uint8).long()


def rows(text: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (count, CONTEXT)."""
    chance = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT - 1, (count,), generator=chance)
    taken = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return taken[:, :-1], taken[:, 1:]


def trained(width: int, rate: float, rule: MuP | None, steps: int, text: torch.Tensor) -> float:
    """Nats a byte on the last tenth of the text."""
    model = TransformerConfig(
        vocabulary=256, width=width, layers=2, context=CONTEXT, tied=False, scaling=rule,
        attention=(GQA(heads=width // 32, qk_norm="head"),), init=Zero(std=0.5),
    ).build(seed=0)  # fmt: skip
    optimizer, schedule = AdamW(rate=rate).build(model), Cosine(warmup=0.1)
    peaks = [group["lr"] for group in optimizer.param_groups]
    edge = len(text) * 9 // 10
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step, steps)
        (-model.logprobs(*rows(text[:edge], ROWS, step)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(-model.logprobs(*rows(text[edge:], 256, -1)).mean())


def main() -> None:
    torch.set_num_threads(1)
    steps, text = int(sys.argv[1]) if len(sys.argv) > 1 else 100, corpus()
    print("| rule | width | " + " | ".join(f"{rate:g}" for rate in RATES) + " |")
    print("|---|--:|" + "--:|" * len(RATES))
    for rule in (None, RULE):
        for width in WIDTHS:
            found = [trained(width, rate, rule, steps, text) for rate in RATES]
            cells = [f"**{x:.3f}**" if x == min(found) else f"{x:.3f}" for x in found]
            name = rule.kind if rule else "none"
            print(f"| {name} | {width} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
