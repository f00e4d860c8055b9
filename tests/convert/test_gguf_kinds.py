"""Types by tensor: the table, rows that do not fit, and llama.cpp's own quantiser and reading."""

import ctypes
import re
import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError
from culm.convert import gguf as ours
from culm.convert.gguf.families.metadata import NAMES as TABLE
from culm.convert.gguf.kinds import KINDS, kinds_of
from culm.convert.rules import ModuleNames, renamed
from culm.convert.weights import plain_weights

GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64}
WIDE = {
    "width": 256,
    "layers": 9,
    "context": 128,
    "attention": GQA,
    "mlp": {"kind": "swiglu", "hidden": 320},
}
SHAPES = {"token_embd.weight": (300, 256), "output_norm.weight": (256,)} | {
    f"blk.{layer}.{part}.weight": (256, 320 if part == "ffn_down" else 256)
    for layer in range(9)
    for part in ("attn_q", "attn_v", "ffn_down")
}


@pytest.fixture(scope="module")
def wide(tiny):
    return tiny(**WIDE)


@pytest.fixture(scope="module")
def four_bits(tiny, tokenizer, tmp_path_factory):
    """The bytes of a small file in Q4_K."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    mlp = {"kind": "swiglu", "hidden": 256}
    ours.export(tiny(width=256, layers=1, attention=GQA, mlp=mlp), tokenizer, path, "q4_k_m")
    return path.read_bytes()


def test_mixture_by_hand():
    """Of 9 layers the first, the last two, and every third between have more bits."""
    kinds, note = kinds_of(SHAPES, KINDS["q4_k_m"], layers=9)
    more = [layer for layer in range(9) if kinds[f"blk.{layer}.attn_v.weight"] is Kind.Q6_K]
    assert more == [0, 3, 6, 7, 8]
    for layer in range(9):
        assert kinds[f"blk.{layer}.attn_q.weight"] is Kind.Q4_K
        smaller = Kind.Q8_0 if layer in more else Kind.Q5_0
        assert kinds[f"blk.{layer}.ffn_down.weight"] is smaller
    assert kinds["token_embd.weight"] is Kind.Q6_K  # the head too, as there is no other
    assert kinds["output_norm.weight"] is Kind.F32
    untied, _ = kinds_of({**SHAPES, "output.weight": (300, 256)}, KINDS["q4_k_m"], layers=9)
    assert (untied["output.weight"], untied["token_embd.weight"]) == (Kind.Q6_K, Kind.Q4_K)
    assert note == (
        "9 of 28 matrices have rows that do not fill blocks of 256 and get another type; "
        "blk.0.ffn_down.weight of 320 is Q8_0, not Q6_K"
    )


@pytest.mark.parametrize(
    ("precision", "length", "expected"),
    [("q5_k_m", 96, Kind.Q5_1), ("q6_k", 96, Kind.Q8_0), ("q4_k_m", 80, Kind.F16),
     ("q4_0", 80, Kind.F16), ("f16", 7, Kind.F16), ("bf16", 7, Kind.BF16), ("f32", 7, Kind.F32)],
)  # fmt: skip
def test_rows_that_do_not_fill_a_block(precision, length, expected):
    kinds, note = kinds_of({"blk.0.attn_q.weight": (8, length)}, KINDS[precision], layers=1)
    assert kinds == {"blk.0.attn_q.weight": expected}
    assert bool(note) == (expected not in (KINDS[precision].most, None))


@pytest.mark.parametrize("precision", KINDS)
def test_written_and_read_back(wide, tokenizer, tokens, tmp_path, precision):
    ours.export(wide, tokenizer, tmp_path / "m.gguf", precision)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["blk.1.attn_q.weight"] is KINDS[precision].most
    assert reader.get_field("general.file_type").contents() == KINDS[precision].file_type
    assert reader.get_field("general.quantization_version").contents() == 2
    again, _ = ours.load(tmp_path / "m.gguf")
    # The weights are normal and 0.05 wide: 9 % of that at 4 bits, next to nothing at 16.
    for (name, mine), (_, found) in zip(plain_weights(wide), plain_weights(again), strict=True):
        error = ((found - mine).square().mean() / mine.square().mean()).sqrt()
        most = 0.1 if types[_theirs(name)].name.startswith(("Q4", "Q5")) else 0.02
        assert error <= (0 if precision == "f32" else most), name
    # Written again from what was read, it is the same model to a fraction of the first error.
    ours.export(again, tokenizer, tmp_path / "n.gguf", precision)
    third, _ = ours.load(tmp_path / "n.gguf")
    with torch.no_grad():
        first, second, last = (model(tokens) for model in (wide, again, third))
    assert (last - second).square().mean() <= 0.1 * (second - first).square().mean()


def test_rows_that_do_not_fill_blocks_are_reported(wide, tokenizer, tmp_path, capsys):
    for precision, told in (("q4_k_m", True), ("q4_0", False), ("f16", False)):
        ours.export(wide, tokenizer, tmp_path / "m.gguf", precision)
        assert ("blk.0.ffn_down.weight of 320 is Q8_0" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("precision", "number", "message"),
    [("f32", float("nan"), "contains NaN or infinity"),
     ("q4_k_m", float("inf"), "contains NaN or infinity"),
     ("f16", 1e6, r"1e\+06 is more than F16 can store; use f32"),
     ("q4_k_m", 1e6, r"1e\+06 is more than Q4_K can store; use f32")],
)  # fmt: skip
def test_a_broken_weight_leaves_no_file(tiny, tokenizer, tmp_path, precision, number, message):
    model = tiny(**WIDE)
    with torch.no_grad():
        model.blocks[1].attention.out.weight[3, 4] = number
    with pytest.raises(SettingError, match=rf"^blk\.1\.attn_output\.weight:? {message}"):
        ours.export(model, tokenizer, tmp_path / "m.gguf", precision)
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 30_000), value=st.integers(0, 255))
def test_a_changed_byte_never_escapes(four_bits, tmp_path_factory, at, value):
    damaged = bytearray(four_bits)
    damaged[at] = value
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(damaged)
    with suppress(SettingError):
        ours.load(path)


@pytest.mark.parametrize("kind", GGML_QUANT_SIZES)
def test_a_type_that_lies(four_bits, tmp_path, kind):
    """Every other type that the package knows: refused, or read as numbers that nobody meant."""
    name = b"blk.0.attn_q.weight"
    at = four_bits.index(name) + len(name) + 4 + 2 * 8  # after the count of dimensions and those
    assert struct.unpack_from("<I", four_bits, at)[0] == Kind.Q4_K
    damaged = bytearray(four_bits)
    struct.pack_into("<I", damaged, at, kind)
    (tmp_path / "m.gguf").write_bytes(damaged)
    with suppress(SettingError):
        ours.load(tmp_path / "m.gguf")


def test_unknown_kind(tiny, tokenizer, tmp_path):
    with pytest.raises(SettingError, match=r"^dtype: 'q3_k' is not one of f32, f16, bf16, q8_0, "):
        ours.export(tiny(), tokenizer, tmp_path / "m.gguf", "q3_k")


def test_help_names_all_kinds():
    text = CliRunner().invoke(app, ["export", "--help"], terminal_width=200).output
    assert not KINDS.keys() - set(re.findall(r"\w+", text))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", KINDS)
def test_bytes_of_llama_cpp(tiny, tokenizer, tmp_path, precision, tied):
    """The file is the one that its quantiser makes of our F32 file: each type and each byte."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = tiny(**WIDE, tied=tied)
    ours.export(model, tokenizer, tmp_path / "f32.gguf", "f32")
    ours.export(model, tokenizer, tmp_path / "ours.gguf", precision)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = KINDS[precision].file_type, 1
    source, target = str(tmp_path / "f32.gguf"), str(tmp_path / "theirs.gguf")
    assert not llama_cpp.llama_model_quantize(
        source.encode(), target.encode(), ctypes.byref(wanted)
    )
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    mine = gguf.GGUFReader(tmp_path / "ours.gguf").tensors
    assert len(mine) == len(theirs)
    for tensor in mine:
        assert tensor.tensor_type is theirs[tensor.name].tensor_type
        assert np.array_equal(tensor.data, theirs[tensor.name].data)


@pytest.mark.slow
@pytest.mark.parametrize("precision", KINDS)
def test_llama_cpp_predicts_as_we_do(wide, tokenizer, tmp_path, precision):
    """Perplexity of the same weights on fixed tokens, theirs against ours.

    At F32 and F16 only the order of sums and the float16 cache differ (measured: below 0.003 %).
    Elsewhere llama.cpp rounds the activations too, to bf16 or to blocks of 8 bits, before each
    product, and we compute in fp32 with what the file decodes to (measured: up to 0.42 %; a
    model that is trained is surer of itself and moves less).
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "m.gguf"
    ours.export(wide, tokenizer, path, precision)
    model, _ = ours.load(path)
    ids = torch.randint(0, 300, (128,), generator=torch.Generator().manual_seed(3))
    peer = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    peer.eval(ids.tolist())
    with torch.no_grad():
        logits = model(ids[None])[0], torch.tensor(peer.scores[:128])
    mine, theirs = (torch.log_softmax(each.double(), -1) for each in logits)
    loss, peers = (-each[:-1].gather(1, ids[1:, None]).mean() for each in (mine, theirs))
    exact = precision in ("f32", "f16")
    assert abs(float((peers - loss).expm1())) < (0.001 if exact else 0.01)
    divergence = float((mine.exp() * (mine - theirs)).sum(-1).mean())
    assert divergence < (1e-6 if exact else 1e-3)


def _theirs(name: str) -> str:
    module, _, part = name.rpartition(".")
    return f"{ModuleNames(renamed(TABLE)).theirs(module)}.{part}"
