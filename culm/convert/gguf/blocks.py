"""Numbers as GGUF stores them: floats, blocks of 32, and the K-quants' super-blocks of 256.

The `gguf` package encodes floats and blocks of 32 and decodes everything, but has no encoder for
K-quants, so those are here. They follow the search of llama.cpp's quantiser without an importance
matrix, on many blocks at once, and give the same bytes. `d` and `dmin` are float16, all numbers
little-endian. As in llama.cpp, a super-block of numbers below about 1e-4 loses precision: its
float16 `d` is near zero and has few bits left.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from culm.config import SettingError
from culm.dtype import NOT_FINITE

Array = np.ndarray
BLOCK = 256
FLOATS = (Kind.F32, Kind.F16, Kind.BF16)
TILE = 256  # super-blocks that are encoded at once, so that the search stays in the CPU cache
# Maximum of a type; the scale of a block is a float16.
LARGEST = {Kind.F32: 3.4028234e38, Kind.BF16: 3.3895313e38}
HALF = 65504.0
# Smaller numbers are zero in every block, like their float16 scale: 1 / scale would overflow.
SMALLEST = 1e-12


def encode(numbers: Array, kind: Kind, name: str = "tensor") -> Array:
    """numbers: (..., n) float32, n a multiple of the kind's block -> (..., bytes of n) as stored.

    Raises:
        SettingError: `name` contains a number that is not finite, or too large for the type.
    """
    if not np.isfinite(numbers).all():
        raise SettingError(f"{name} {NOT_FINITE}")
    largest, most = np.abs(numbers).max(initial=0), LARGEST.get(kind, HALF)
    if largest > most:
        raise SettingError(f"{name}: {largest:.4g} is more than {kind.name} can store; use f32")
    if kind in FLOATS:
        return gguf.quantize(numbers, kind)
    numbers = np.where(np.abs(numbers) < SMALLEST, np.float32(0), numbers)
    if kind not in ENCODERS:
        return gguf.quantize(numbers, kind)
    blocks = numbers.reshape(-1, BLOCK)
    tiles = (blocks[start : start + TILE] for start in range(0, len(blocks), TILE))
    with np.errstate(divide="ignore", invalid="ignore"):  # zeros, handled after
        encoded = np.concatenate([ENCODERS[kind](tile) for tile in tiles])
    return encoded.reshape(*numbers.shape[:-1], -1)


def q4_k(blocks: Array) -> Array:
    """blocks: (n, 256) float32 -> (n, 144) bytes, 4.5 bits a number: x = d * scale * q - dmin * min

    8 sub-blocks of 32, each with a scale and a min of 6 bits and numbers q from 0 to 15::

        d 2 | dmin 2 | scales and mins 12 | q 4 x 32: sub-block 2i low, 2i + 1 high half of a byte
    """
    head, q = _affine(blocks, top=15, first=-1.0, steps=21)
    return np.concatenate([head, _halves(q)], axis=1)


def q5_k(blocks: Array) -> Array:
    """blocks: (n, 256) float32 -> (n, 176) bytes, 5.5 bits a number: as `q4_k`, q from 0 to 31.

    ::

        d 2 | dmin 2 | scales and mins 12 | fifth bits 32: bit j is sub-block j's | q 4 x 32
    """
    head, q = _affine(blocks, top=31, first=-0.5, steps=16)
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")[:, 0]
    return np.concatenate([head, fifth, _halves(q & 15)], axis=1)


def q6_k(blocks: Array) -> Array:
    """blocks: (n, 256) float32 -> (n, 210) bytes, 6.56 bits a number: x = d * scale * (q - 32)

    16 sub-blocks with a scale of 8 bits, signed; q from 0 to 63. Each half of 128 numbers is four
    runs a, b, c, e of 32::

        low bits 2 x (32 of a | c << 4, 32 of b | e << 4)
        high bits 2 x 32 of a | b << 2 | c << 4 | e << 6     | scales 16 | d 2
    """
    x = _columns(blocks, 16)
    scale = _symmetric(x, 32).reshape(-1, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)
    inverse = np.where(largest == 0, np.float32(0), np.float32(-128) / largest)
    d = np.where(largest == 0, np.float32(0), 1 / inverse).astype(np.float16)
    scales = np.minimum(np.rint(inverse * scale), 127).astype(np.int8)
    q = _nearest(x, (d.astype(np.float32) * scales).ravel(), 0, -32, 31)
    q = (q + 32).astype(np.uint8).T.reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    lows = low[:, :, :2] | low[:, :, 2:] << 4
    highs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = lows.reshape(-1, 128), highs.reshape(-1, 64), scales.view(np.uint8), d.view(np.uint8)
    return np.concatenate(parts, axis=1)


ENCODERS: dict[Kind, Callable[[Array], Array]] = {
    Kind.Q4_K: q4_k,
    Kind.Q5_K: q5_k,
    Kind.Q6_K: q6_k,
}


def _affine(blocks: Array, top: int, first: float, steps: int) -> tuple[Array, Array]:
    """(n, 256) -> the first 16 bytes of each super-block, and q (n, 8, 32) of 0 to `top`."""
    x = _columns(blocks, 32)
    scale, low = (part.reshape(-1, 8) for part in _scale_and_low(x, top, first, steps))
    d, scales = _six_bits(scale)
    dmin, mins = _six_bits(low)
    step = (d.astype(np.float32) * scales).ravel()
    q = _nearest(x, step, (dmin.astype(np.float32) * mins).ravel(), 0, top)
    packed = (
        scales[:, :4] | scales[:, 4:] >> 4 << 6,
        mins[:, :4] | mins[:, 4:] >> 4 << 6,
        scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4,
    )
    head = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), *packed], axis=1)
    return head, q.astype(np.uint8).T.reshape(-1, 8, 32)


def _scale_and_low(x: Array, top: int, first: float, steps: int) -> tuple[Array, Array]:
    """x: (32, n) -> scale and low (n,), both >= 0, so that x is near scale * q - low.

    Candidates divide the range into `top + first`, then 0.1 more, ... steps; least squares, where
    larger numbers weigh more, gives each its best scale and low, and the smallest error wins. The
    range of the next candidate begins at the best low so far.
    """
    weight = np.sqrt(_sum(x * x) / 32) + np.abs(x)
    total, moment = _sum(weight), _sum(weight * x)
    high, low = x.max(0), np.minimum(x.min(0), 0)
    q, work = np.empty_like(x), np.empty_like(x)

    def quantize(count: np.float32, low: Array) -> None:
        np.multiply(np.subtract(x, low, out=q), count / (high - low), out=q)
        np.clip(np.rint(q, out=q), 0, top, out=q)

    def error(scale: Array, low: Array) -> Array:
        np.subtract(np.add(np.multiply(q, scale, out=work), low, out=work), x, out=work)
        return _sum(np.multiply(np.multiply(work, work, out=work), weight, out=work))

    flat = high == low
    quantize(np.float32(top), low)
    scale = 1 / (np.float32(top) / (high - low))
    best = error(scale, low)
    for step in range(steps):
        quantize(np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(top), low)
        np.multiply(weight, q, out=work)
        sum_q, sum_qq, sum_qx = _sum(work), _dot(work, q), _dot(work, x)
        spread = total * sum_qq - sum_q * sum_q
        new_scale = (total * sum_qx - moment * sum_q) / spread
        new_low = (sum_qq * moment - sum_q * sum_qx) / spread
        positive = new_low > 0  # a block stores -low as a number >= 0
        new_scale = np.where(positive, sum_qx / sum_qq, new_scale)
        new_low = np.where(positive, np.float32(0), new_low)
        found = error(new_scale, new_low)
        better = (spread > 0) & (found < best)
        best, scale = np.where(better, found, best), np.where(better, new_scale, scale)
        low = np.where(better, new_low, low)
    return np.where(flat, np.float32(0), scale), np.abs(low)  # no -0.0


def _symmetric(x: Array, top: int) -> Array:
    """x: (16, n) -> scale (n,) of either sign, so that x is near scale * q, q from -top to top - 1.

    The largest number becomes -top, or up to 0.9 more or less; least squares weighted by x^2.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    weight = x * x
    moment = weight * x
    q, weighted = np.empty_like(x), np.empty_like(x)
    scale = best = np.zeros_like(largest)
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        count = np.float32(top) + np.float32(0.1) * np.float32(tenths)
        np.multiply(x, -count / largest, out=q)
        np.clip(np.rint(q, out=q), -top, top - 1, out=q)
        np.multiply(weight, q, out=weighted)
        sum_qx, sum_qq = _dot(moment, q), _dot(weighted, q)
        better = (sum_qq > 0) & (sum_qx * sum_qx > best * sum_qq)
        scale = np.where(better, sum_qx / sum_qq, scale)
        best = np.where(better, scale * sum_qx, best)
    return scale


def _columns(blocks: Array, length: int) -> Array:
    """(n, 256) -> (length, n * 256 / length): a sub-block is a column, its sum runs down rows."""
    return np.ascontiguousarray(blocks.reshape(-1, length).T)


def _sum(x: Array) -> Array:
    return np.add.reduce(x, axis=0)


def _dot(x: Array, y: Array) -> Array:
    return np.einsum("ij,ij->j", x, y)


def _six_bits(values: Array) -> tuple[Array, Array]:
    """values: (n, 8), >= 0 -> float16 d (n, 1) and numbers of 0 to 63 (n, 8): value = d * number"""
    largest = values.max(1, keepdims=True)
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    numbers = np.clip(np.rint(inverse * values), 0, 63).astype(np.uint8)
    return (largest / 63).astype(np.float16), numbers


def _nearest(x: Array, step: Array, low: Array | int, least: int, most: int) -> Array:
    """The numbers that decode nearest to x under the scales as they are stored."""
    q = np.where(step == 0, np.float32(0), (x + low) / step)
    return np.clip(np.rint(q), least, most)


def _halves(q: Array) -> Array:
    """(n, 8, 32) of 4 bits -> (n, 128) bytes."""
    return (q[:, ::2] | q[:, 1::2] << 4).reshape(-1, 128)
