"""Optimizers and schedules: one file a kind; these unions are the registry."""

from culm.config import one_of
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon
from culm.optim.schedule import Schedule

Optimizer = one_of(AdamW | Muon)

__all__ = ["Optimizer", "Schedule"]
