"""Compiled code with every instruction set of this machine, not only with its fastest."""

from collections.abc import Iterator

import pytest
import torch
from fused_models import build, checked_steps, here
from test_fused_reader import test_errors_are_those_of_bf16_or_of_int8_activations as check_reading

from culm import compiled
from culm.adapt.quantize import int4
from culm.engine import fused_library

pytestmark = pytest.mark.slow  # each set is compiled; the fastest one serves the other tests


@pytest.fixture(params=compiled.FASTEST_FIRST, ids=lambda known: known.name)
def instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[compiled.InstructionSet]:
    if request.param not in compiled.instruction_sets():
        pytest.skip("this CPU does not have it")
    monkeypatch.setattr(compiled, "instruction_set", lambda: request.param)
    for cached in (fused_library.library, int4._library):
        cached.cache_clear()
    yield request.param
    for cached in (fused_library.library, int4._library):
        cached.cache_clear()


CASES = [
    ("windows", "bf16", "plain"), ("as Gemma 2", "int8", "plain"), ("grouped", "int4", "plain"),
    ("grouped", "int4 of 64", "plain"), ("layers differ", "bf16", "int8"),
    ("partial rotation", "int8", "int4"),
]  # fmt: skip


@here
@pytest.mark.parametrize(("shape", "weights", "kind"), CASES)
@torch.inference_mode()
def test_decoding(instructions, shape, weights, kind):
    checked_steps(shape, weights, [1, 4, 9, 13, 16, 20, 2, 3, 5], kind)  # eight rows and one


@here
@pytest.mark.parametrize(
    ("shape", "weights"), [("windows", "bf16"), ("grouped", "int8"), ("layers differ", "int4")]
)
def test_reading(instructions, shape, weights):
    check_reading(shape, weights)


@here
@pytest.mark.parametrize("weights", ["int4", "int4 of 64"])
def test_int4_weights_have_the_same_values(instructions, weights):
    layer = build("grouped", weights).blocks[0].mlp.up
    assert torch.equal(layer._in_bf16(int4._library()), layer.dequantize().bfloat16())
