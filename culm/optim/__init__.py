"""Optimizers and schedules: one file a kind; these unions are the registry."""

from culm.config import one_of
from culm.optim.adafactor import Adafactor
from culm.optim.adamw import AdamW
from culm.optim.adamw8bit import AdamW8bit
from culm.optim.galore import GaLore, GaLore8bit
from culm.optim.lion import Lion
from culm.optim.muon import Muon
from culm.optim.riemannian import RiemannianAdam, RiemannianSGD
from culm.optim.schedule import Schedule
from culm.optim.schedule_free import ScheduleFree
from culm.optim.sgd import SGD

Optimizer = one_of(
    AdamW
    | Muon
    | AdamW8bit
    | GaLore
    | GaLore8bit
    | Adafactor
    | Lion
    | SGD
    | ScheduleFree
    | RiemannianSGD
    | RiemannianAdam
)

__all__ = ["Optimizer", "Schedule"]
