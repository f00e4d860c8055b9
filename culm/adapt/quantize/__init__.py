"""Quantisers of weights, and methods to find codes: one file per kind, two unions."""

from culm.adapt.quantize.awq import AWQ
from culm.adapt.quantize.fp8 import FP8
from culm.adapt.quantize.gptq import GPTQ
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.method import RTN
from culm.adapt.quantize.nf4 import NF4
from culm.adapt.quantize.smoothquant import SmoothQuant
from culm.adapt.quantize.w8a8 import W8A8
from culm.config import one_of, some_of

Quantizers = some_of(Int8 | Int4 | NF4 | W8A8 | FP8)
Quantizer = one_of(Int8 | Int4 | NF4 | W8A8 | FP8)
Method = one_of(RTN | GPTQ | AWQ | SmoothQuant)
