"""What model FLOPs utilisation (MFU, arXiv 2204.02311) is made of: the FLOPs that a token needs,
and the peak of a device.

    mfu = tokens/s * FLOPs of a token / (peak FLOP/s of all devices)

FLOPs are those of a plan: of the matmuls in a forward and a backward of the very objective, two for
each multiply-add, in full rows. What is computed again, under activation checkpointing or since
logits are too large to store, is not among them (that would be the utilisation of the hardware).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from culm.device import matmul_rate
from culm.model.logprobs import ROUND, logits_stored
from culm.objective.objective import Objective
from culm.plan.dry_run import training_flops
from culm.plan.needs import Step
from culm.plan.target import target_called

PADDED = 0.02  # of the tokens are padding at most where FLOPs are counted


def on_meta(objective: Objective) -> Objective:
    """A copy without numbers, and so without memory; the objective is not parallelised yet."""
    known: dict[int, torch.Tensor] = {}
    for parameter in objective.parameters():
        hollow = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        known[id(parameter)] = hollow
    for buffer in objective.buffers():
        known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(objective, known)


def flops_per_token(objective: Objective, step: Step) -> float:
    """Of training; the objective on the meta device."""
    row, rows = step.sequences * step.context, 2  # some losses compare two
    while -rows * row % ROUND > PADDED * rows * row:  # logits of padding are computed, too
        rows *= 2
    with logits_stored():
        return training_flops(objective, step.batch(rows)) / (rows * row)


def peak_rate(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s of a device at its peak, and where the figure is from.

    The rate of the datasheet, if the table of targets has the GPU; fp16 and fp8 count as bf16.
    Otherwise the rate of a large matmul here, in the fastest precision.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (target := target_called(name)) is not None:
            return target.fp32 if precision == "fp32" else target.bf16, f"the datasheet of {name}"
    known = {"fp32", "bf16"} | ({precision} & {"fp16"})
    return max(matmul_rate(device, one) for one in known), "a large matmul here"
