"""The number formats of GGUF: golden bytes, llama.cpp's own quantiser, errors, odd numbers."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from culm.config import SettingError
from culm.convert.gguf.blocks import TILE, encode

RAMP = ((np.arange(32) - 15.5) / 8).astype(np.float32)[None]
# Sub-blocks of different range, and no symmetry.
STEPS = ((37 * np.arange(256) % 256 - 100) / 64 * (1 + np.arange(256) // 32)).astype(np.float32)
K_QUANTS = (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
BLOCKS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, *K_QUANTS, Kind.Q8_0)
GOLDEN = {
    Kind.Q4_K: (
        "6427f13088d0dde18ad1dfe688bbf99fa0c2f5072a5c7fa0c3f5083a5d8fa0d3f5083a5d8fa1d3f6183b6d8fb1d3"
        "f618e406285a7caec2e406385a7caec2f406385a8caec2f416385a8ca0d2f416396b274a6c8fa0c2e5274a6c8fa0"
        "c305284a6d8fa0c305284a6d8fa1c306284b6d8f5c7ea0c2f5072a5c7fa0c3f5082a5c8fa0d3f5083a5d8fa1d3f5"
        "083a5d8fa1d3"
    ),
    Kind.Q5_K: (
        "6923fe3088d0dae08ad1dde688b4f8bf4a5296b4a52d694a5296b4a52d494a5296b5ad6d4b5ad296b5ad694b5ad2"
        "96b54095ea0f54a9fe4095ea0f54a9fe4196eb1065ba0f51a6fb1065ba0f52a7fc21e80c51a5fa4f93e80d51a6fa"
        "4f94e81d62b60b5fa4f91d62b60b50a4f92e72c74f84d92e60b5fa4f94d92e70b50a5f94e92e71c60b5095ea3f71"
        "c61b50a5ea3fa9fe4095ea0f54a9fe4095ea0f54a9fe51a6fb1065ba0f51a6fb1065ba0f52a7"
    ),
    Kind.Q6_K: (
        "8a00870d941af179ff760c8309e068ff75fc830ad266ed64fb724ac155dc63eb227ae154cb33aa1269d043ba2299"
        "0168c142b921a91148b031a910980038b020ba2159c142ba31a91148c031a921981039a120a820a82028a02f971f"
        "971018901e961f971008810d860e870f08840d850d841be278ff750c830ae167ee75fc7227e3929d49482427d292"
        "9d49482427d2928d49482427d2928d49782427d2928d8949742427d2928949742423d29e8949742423929e494974"
        "2422929d49493424f3f2e3e2d0cfc9c7b6b29daf9b968580cc1c"
    ),
}


def decoded(numbers: np.ndarray, kind: Kind) -> np.ndarray:
    return gguf.dequantize(encode(numbers, kind), kind)


def root_mean_square(numbers: np.ndarray) -> float:
    return float(np.sqrt((numbers.astype(np.float64) ** 2).mean()))


def matrices() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    size = (64, 1024)
    drawn = {
        "normal": random.normal(size=size),
        "heavy tails": random.standard_t(3, size=size),
        "uniform": random.random(size) - 0.5,
        "sub-blocks of different size": random.normal(size=size)
        * np.repeat(2.0 ** random.integers(-4, 1, (64, 32)), 32, 1),
    }
    return {name: (0.02 * numbers).astype(np.float32) for name, numbers in drawn.items()}


@pytest.mark.parametrize(
    ("kind", "golden", "largest"),
    [
        (Kind.Q4_0, "c033809191a2a2b3b3c4c4d5d5e6e6f7f7f8", 0.2421875),
        (Kind.Q4_1, "2234c0bf80809191a2a2b3b3c4c4d5d5e6e6f7f7", 0.125),
        (Kind.Q5_0, "c02f0000ffff102132435465768798a9bacbdcedfeff", 0.1210938),
        (
            Kind.Q8_0,
            "d0238189919aa2aab2bac3cbd3dbe3ecf4fc040c141d252d353d464e565e666f777f",
            0.00733,
        ),
    ],
)
def test_golden_blocks_of_32(kind, golden, largest):
    assert encode(RAMP, kind).tobytes().hex() == golden
    assert np.abs(decoded(RAMP, kind) - RAMP).max() <= largest + 1e-7


@pytest.mark.parametrize("kind", K_QUANTS)
def test_golden_k_quants(kind):
    """Bytes of llama.cpp's quantiser on the same row."""
    assert encode(STEPS[None], kind).tobytes().hex() == GOLDEN[kind]


def naive(x: np.ndarray, kind: Kind) -> np.ndarray:
    """Round to nearest in the same layout: scales from the range alone, no search."""
    if kind is Kind.Q6_K:
        groups = x.reshape(-1, 16, 16)
        scale = np.abs(groups).max(-1, keepdims=True) / 31
        scale = rounded(scale, 127)
        return (scale * np.clip(np.rint(groups / scale), -32, 31)).reshape(x.shape)
    groups, top = x.reshape(-1, 8, 32), {Kind.Q4_K: 15, Kind.Q5_K: 31}[kind]
    low = np.minimum(groups.min(-1, keepdims=True), 0)
    scale = rounded((groups.max(-1, keepdims=True) - low) / top, 63)
    low = rounded(-low, 63)
    return (scale * np.clip(np.rint((groups + low) / scale), 0, top) - low).reshape(x.shape)


def rounded(scales: np.ndarray, top: int) -> np.ndarray:
    """(n, sub-blocks, 1) as they are stored: whole numbers times one float16 a super-block."""
    unit = scales.max(1, keepdims=True) / top
    return unit.astype(np.float16).astype(np.float32) * np.rint(scales / unit)


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize("name", matrices())
def test_search_beats_rounding_to_nearest(name, kind):
    x = matrices()[name]
    ours = root_mean_square(decoded(x, kind) - x)
    assert ours < 0.97 * root_mean_square(naive(x, kind) - x)


def test_error_falls_with_bits():
    x = matrices()["normal"]
    order = (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q5_0, Kind.Q5_1, Kind.Q5_K, Kind.Q6_K, Kind.Q8_0,
             Kind.BF16, Kind.F16, Kind.F32)  # fmt: skip
    errors = [root_mean_square(decoded(x, kind) - x) / x.std() for kind in order]
    assert errors == sorted(errors, reverse=True)
    # Of llama.cpp's quantiser on normal numbers, and 2 % for this draw.
    most = dict(zip(order, (0.0859, 0.0782, 0.0714, 0.0428, 0.0379, 0.0361, 0.0178, 0.00536),
                    strict=False))  # fmt: skip
    for kind, error in zip(order, errors, strict=True):
        assert error < 1.02 * most.get(kind, 0.0017)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", matrices())
def test_what_was_decoded_is_encoded_alike(name, kind):
    """Exactly where the scale follows from the largest number, else nearly."""
    x = matrices()[name]
    once = decoded(x, kind)
    again = root_mean_square(decoded(once, kind) - once)
    symmetric = kind in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0)
    assert again <= (0 if symmetric else 0.2 * root_mean_square(once - x))


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_do_not_see_each_other(kind):
    """Not the tiles that are encoded at once either, nor the dimensions before the rows."""
    x = np.random.default_rng(1).normal(size=(3, TILE - 50, 256)).astype(np.float32)
    whole = encode(x, kind)
    assert whole.dtype == np.uint8
    assert whole.shape[:2] == x.shape[:2]
    assert np.array_equal(whole[1, 7], encode(x[1, 7:8], kind)[0])
    assert np.array_equal(whole[2, -1], encode(x[2, -1:], kind)[0])


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.filterwarnings("error")
def test_odd_numbers(kind):
    zeros = np.zeros((2, 256), np.float32)
    assert not decoded(zeros, kind).any()
    for constant in (1.0, -1.0, 0.0371, 6e4, -6e4):
        assert np.allclose(decoded(zeros + constant, kind), constant, rtol=4e-3)
    random = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    for size in (1e-45, 1e-38, 1e-20, 1e-9, 1e-6):  # the smallest float16 is 6e-8
        assert np.abs(decoded(random * np.float32(size), kind)).max() <= 10 * size
    alone = zeros.copy()
    alone[0, 77] = -5.0
    assert np.allclose(decoded(alone, kind), alone, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("kind", BLOCKS)
def test_an_outlier_spoils_no_other_block(kind):
    x = np.random.default_rng(0).normal(size=(1, 512)).astype(np.float32)
    calm = decoded(x, kind)
    x[0, 40] = 1000.0
    found = decoded(x, kind)
    assert found[0, 40] == pytest.approx(1000, rel=2e-2)
    assert np.array_equal(found[0, 256:], calm[0, 256:])


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, *BLOCKS])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_no_number_is_refused(kind, number):
    x = np.ones((2, 256), np.float32)
    x[1, 3] = number
    with pytest.raises(SettingError, match=r"blk\.0 contains NaN or infinity"):
        encode(x, kind, "blk.0")


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, *BLOCKS])
def test_too_large_is_refused(kind):
    x = np.ones((2, 256), np.float32)
    x[0, 0] = 3.4e38 if kind is Kind.BF16 else -65_520
    with pytest.raises(SettingError, match=rf"is more than {kind.name} can store; use f32"):
        encode(x, kind)
    assert np.array_equal(encode(x, Kind.F32), x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS)
def test_numbers_of_llama_cpp(kind):
    """Decoded, all are those of its quantiser; q may differ where its scale is zero."""
    llama_cpp = pytest.importorskip("llama_cpp")
    quantize = ctypes.CDLL(
        str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*")))
    ).ggml_quantize_chunk
    count, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    odd = np.zeros((8, 1024), np.float32)
    odd[1], odd[2], odd[3, ::50], odd[4] = 1, -0.3, 7, 1e-6
    for x in (*matrices().values(), odd, 3e5 * matrices()["normal"]):
        ours = encode(x, kind)
        theirs = np.zeros_like(ours)
        quantize(kind.value, x.ctypes.data, theirs.ctypes.data, 0, *x.shape, None)
        assert np.array_equal(gguf.dequantize(theirs, kind), gguf.dequantize(ours, kind))
