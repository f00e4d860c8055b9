"""Buffers that training updates by a rule instead of a gradient."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class RuleUpdatedBuffers:
    """A module with such buffers; checkpoints contain them.

    rule_updated: their names; those that are None in a module are skipped.
    """

    rule_updated: ClassVar[tuple[str, ...]]


def rule_updated(root: nn.Module) -> dict[str, Tensor]:
    """All such buffers of a model by name."""
    found: dict[str, Tensor] = {}
    for prefix, module in root.named_modules():
        buffers = dict(module.named_buffers(recurse=False))
        if isinstance(module, RuleUpdatedBuffers):
            for name, buffer in buffers.items():
                if name in module.rule_updated:
                    found[f"{prefix}.{name}" if prefix else name] = buffer
    return found
