"""Quantisers of weights and methods to find their codes: one file a kind; two unions."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from culm.adapt.quantize.awq import AWQ
from culm.adapt.quantize.fp8 import FP8
from culm.adapt.quantize.gptq import GPTQ
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.method import RTN
from culm.adapt.quantize.nf4 import NF4
from culm.adapt.quantize.smoothquant import SmoothQuant
from culm.adapt.quantize.w8a8 import W8A8
from culm.config import listed, one_of

Quantizer = one_of(Int8 | Int4 | NF4 | W8A8 | FP8)
Quantizers = Annotated[tuple[Quantizer, ...], BeforeValidator(listed), Field(min_length=1)]  # type: ignore[valid-type]
Method = one_of(RTN | GPTQ | AWQ | SmoothQuant)
