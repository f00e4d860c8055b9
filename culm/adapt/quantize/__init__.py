"""Quantisers of weights: one file a kind; this union is the registry."""

from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.config import one_of

Quantizer = one_of(Int8 | Int4)
