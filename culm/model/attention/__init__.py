"""Attention: one file per kind; this union is the registry."""

from culm.config import one_of
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.attention.mla import MLA

Attention = one_of(GQA | MLA | DeltaNet | Hyperbolic)
