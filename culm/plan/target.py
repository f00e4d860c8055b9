"""Devices that a plan can be made for without having one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from culm.config import SettingError, did_you_mean

UTILISATION = 0.4  # share of the peak that training of dense models commonly reaches


@dataclass(frozen=True)
class Target:
    """memory: bytes. bf16, fp32: FLOP/s at the peak, dense, accumulated in fp32."""

    name: str
    memory: float
    bf16: float
    fp32: float

    def rate(self, precision: str) -> float:
        """FLOP/s to expect of a training."""
        return UTILISATION * (self.fp32 if precision == "fp32" else self.bf16)


# Of the makers' datasheets: NVIDIA A100 80GB SXM, H100 SXM, H200 SXM, L4 (bf16 242 with sparsity,
# fp32 30.3), L40S (bf16 362.05, 733 with sparsity; fp32 91.6); AMD Instinct MI300X (bf16 1307.4,
# fp32 163.4); the whitepapers of the GA102 (RTX 3090) and Ada (RTX 4090: bf16 165.2, fp32 82.6).
# Where a datasheet gives bf16 with sparsity alone, half of it.
TARGETS = {
    target.name: target
    for target in (
        Target("rtx3090", 24e9, 71e12, 35.6e12),
        Target("rtx4090", 24e9, 165e12, 82.6e12),
        Target("l4", 24e9, 121e12, 30.3e12),
        Target("l40s", 48e9, 362e12, 91.6e12),
        Target("a100", 80e9, 312e12, 19.5e12),
        Target("h100", 80e9, 989e12, 67e12),
        Target("h200", 141e9, 989e12, 67e12),
        Target("mi300x", 192e9, 1307e12, 163e12),
    )
}


# Of the same chip with another peak.
VARIANTS = {"laptop", "pcie", "nvl", "mig", "max", "super", "ti", "d"}


def target_called(device: str) -> Target | None:
    """That of a device by the name that its driver gives, such as `NVIDIA H100 80GB HBM3`; None if
    it is not in the table, or a variant with another peak.
    """
    words = re.split(r"[^a-z0-9]+", device.lower())
    if VARIANTS & set(words):
        return None
    pairs = [first + second for first, second in pairwise(words)]
    return next((TARGETS[word] for word in (*pairs, *words) if word in TARGETS), None)


def target_of(name: str) -> Target:
    """The device of a name.

    Raises:
        SettingError: it is not in the table.
    """
    if name.lower() not in TARGETS:
        raise SettingError(f"--device: there is no {name!r}{did_you_mean(name, list(TARGETS))}")
    return TARGETS[name.lower()]
