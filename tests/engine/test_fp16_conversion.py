"""Numbers of 16 bits in `culm/vectors.h`, with every instruction set of this machine."""

from ctypes import c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from fused_models import here

from culm import compiled
from culm.model.layer_cache import FP16_MAX

EVERY = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
BITS = torch.randint(-(1 << 31), 1 << 31, (1 << 20,), generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([65504.0, 65519.996, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 0.0] * 16)


@here
@pytest.mark.parametrize("known", compiled.FASTEST_FIRST, ids=lambda known: known.name)
def test_fp16_is_that_of_torch(known, monkeypatch, tmp_path):
    """Every number of 16 bits, and numbers of 32 bits that lie between them."""
    if known not in compiled.instruction_sets():
        pytest.skip("this CPU does not have it")
    monkeypatch.setattr(compiled, "instruction_set", lambda: known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = compiled.compiled(Path(__file__).with_name("fp16.cpp"), "a test")

    def converted(function, numbers, dtype):
        out = torch.empty(numbers.shape, dtype=dtype)
        function(c_void_p(numbers.data_ptr()), c_void_p(out.data_ptr()), c_int64(len(numbers)))
        return out

    assert_same(converted(library.fp16_widen, EVERY, torch.float32), EVERY.float())
    near = EVERY.float() * torch.linspace(1 - 2**-11, 1 + 2**-11, len(EVERY))
    numbers = torch.cat((BITS.to(torch.int32).view(torch.float32), near, EDGES, -EDGES))
    nearest = numbers.half().clamp(-FP16_MAX, FP16_MAX)
    assert_same(converted(library.fp16_narrow, numbers, torch.float16), nearest)


def assert_same(found: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=0, atol=0, equal_nan=True)
