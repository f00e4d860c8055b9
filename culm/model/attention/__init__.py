"""Attention: one file a kind; this union is the registry."""

from culm.config import one_of
from culm.model.attention.gqa import GQA

Attention = one_of(GQA)
