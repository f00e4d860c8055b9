"""`culm quantize` as a person calls it: what it makes, reports and refuses."""

import re

import pytest
import torch

from culm.adapt.quantize.fp8 import FP8Linear
from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.adapt.quantize.w8a8 import W8A8Linear
from culm.config import SettingError, parse
from culm.convert import native
from culm.model.linear import Linear
from culm.model.transformer import TransformerConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.quantize import show_quantized

CONFIG = {
    "vocabulary": 350, "width": 64, "layers": 2, "context": 32, "tied": False,
    "attention": {"kind": "gqa", "heads": 2}, "mlp": {"kind": "swiglu", "hidden": 96},
}  # fmt: skip
MIXED = (
    "[{kind: int8, targets: ['blocks.*.down', head]}, {kind: int4, targets: 'blocks.*.attention.*'}"
    ", {kind: fp8, targets: blocks.*}]"
)


@pytest.fixture(scope="module")
def model():
    return parse(TransformerConfig, CONFIG).build(seed=1)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "whole"
    native.save(model, tokenizer, path)
    return str(path)


@pytest.fixture(scope="module")
def text(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(texts))
    return str(path)


@pytest.fixture
def quantize(folder, tmp_path, capsys):
    """Runs the verb; gives what it printed and the model that it wrote."""

    def run(to: str, method: str = "rtn", text: tuple[str, ...] = (), source: str = folder):
        show_quantized(source, str(tmp_path / "small"), to, method, text, "cpu")
        return capsys.readouterr().out, native.load(tmp_path / "small")[0]

    return run


@pytest.mark.parametrize(
    ("to", "method", "bits"),
    [
        ("int8", "rtn", "8.24"),
        ("int4", "rtn", "5.00"),
        ("{kind: int4, group: 64, targets: blocks.*.attention.*}", "rtn", "4.50"),
        ("int4", "gptq", "5.00"),
        ("int4", "{kind: awq, steps: 4}", "5.00"),
        ("w8a8", "smoothquant", "8.24"),
        ("fp8", "rtn", "8.48"),
        (MIXED, "gptq", "7.15"),
    ],
)
def test_what_it_reports(quantize, text, to, method, bits):
    shown, _ = quantize(to, method, (text,))
    assert f"bits        {bits} per weight, in" in shown
    assert re.search(r"size .* kB of weights, .* kB before in bfloat16", shown)
    assert re.search(r"perplexity +[\d.,]+, [\d.,]+ before, on \d+ tokens that it was not", shown)
    assert re.search(r"divergence +0\.0\d+ nats per token", shown)
    assert re.search(r"agreement +\d+\.\d\d % of the most likely tokens", shown)
    assert re.search(r"decoding +[\d,]+ tokens/s, [\d,]+ before", shown)


def test_without_text_it_measures_no_loss(quantize):
    shown, _ = quantize("int4")
    assert "bits" in shown
    assert "perplexity" not in shown


def test_a_layer_takes_the_first_that_names_it(quantize):
    _, small = quantize(MIXED)
    for block in small.blocks:
        assert type(block.attention.q) is type(block.attention.out) is Int4Linear
        assert type(block.mlp.gate) is type(block.mlp.up) is FP8Linear
        assert type(block.mlp.down) is Int8Linear
    assert type(small.head) is Int8Linear


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibrated_method_serves_its_own_kind(quantize, text, model, method):
    """The others in the list are rounded to nearest, of what folding made of their weights."""
    to = "[{kind: int8, targets: [blocks.*.mlp.up, head]}, {kind: int4, group: 32}]"
    _, small = quantize(to, method, (text,))
    assert type(small.blocks[1].mlp.up) is Int8Linear
    assert type(small.blocks[1].mlp.gate) is Int4Linear
    nearest = Int8Linear.from_linear(model.head)
    assert torch.equal(small.head.weight, nearest.weight)


def test_layers_of_no_target_stay(quantize, model):
    _, small = quantize("{kind: w8a8, targets: blocks.0.mlp.*}")
    assert type(small.blocks[0].mlp.up) is W8A8Linear
    assert type(small.blocks[1].mlp.up) is Linear
    assert torch.equal(small.head.weight, model.head.weight.bfloat16())


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "method", "needs", "message"),
    [
        ("int3", "rtn", False, r"^--to: 'int3' is not one of 'int8', 'int4'"),
        ("{kind: int4, group: 48}", "rtn", False, r"to\[0\]\.group: it should be 32, 64 or 128"),
        ("{kind: int4, grup: 32}", "rtn", False, r"to\[0\]\.grup: no such .* mean 'group'"),
        ("{kind: int4", "rtn", False, r"to: '\{kind: int4' is not readable as YAML"),
        ("[]", "rtn", False, r"to: "),
        ("int4", "gptk", True, r"^--method: 'gptk' is not one of 'rtn', 'gptq'"),
        ("int4", "gptq", False, r"calibrate: gptq needs text; name a file, as in --calibrate"),
        ("w8a8", "smoothquant", False, r"calibrate: smoothquant needs text"),
        ("int8", "gptq", True, r"method: gptq finds codes of int4, not of int8; use method=rtn"),
        ("int4", "smoothquant", True, r"method: smoothquant finds codes of w8a8, not of int4"),
        ("{kind: int4, group: 64}", "rtn", False, r"group: 64 does not divide the 96 inputs of "
         r"blocks\.0\.mlp\.down; use 32, or targets without it"),
        ("{kind: int4, group: 128}", "awq", True, r"group: 128 does not divide the 64 inputs of "
         r"blocks\.0\.attention\.q; use 32 or 64, or targets without it"),
        ("{kind: int8, targets: blocks.*.key}", "rtn", False, r"targets: '.*' names no layer"),
        ("[int8, int4]", "rtn", False, r"targets: no layer is left for int4"),
    ],
)  # fmt: skip
def test_what_it_refuses(quantize, text, tmp_path, to, method, needs, message):
    with pytest.raises(ValueError, match=message):
        quantize(to, method, (text,) if needs else ())
    assert not (tmp_path / "small").exists()
    assert not list(tmp_path.iterdir())


def test_text_that_is_too_short_or_missing(quantize, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("The quick brown fox.")
    with pytest.raises(SettingError, match=r"calibrate: \d+ tokens of text are too few; .* 64"):
        quantize("int4", "gptq", (str(short),))
    with pytest.raises(SettingError, match=r"no-such\.txt"):
        quantize("int4", "gptq", (str(tmp_path / "no-such.txt"),))
    short.write_text("the quick brown fox jumps over the lazy dog. " * 5)
    with pytest.raises(SettingError, match=r"calibrate: \d+ tokens to calibrate on are fewer"):
        quantize("int4", "awq", (str(short),))
    assert list(tmp_path.iterdir()) == [short]


def test_weights_that_are_not_finite(tiny_nan, quantize, tmp_path):
    with pytest.raises(SettingError, match=r"blocks\.1\.mlp\.up\.weight contains NaN or infinity"):
        quantize("int8", source=str(tiny_nan))
    assert not (tmp_path / "small").exists()


@pytest.fixture
def tiny_nan(tokenizer: Tokenizer, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(native, "cast", lambda tensor, *_: tensor)  # which refuses to write it
    broken = parse(TransformerConfig, CONFIG).build(seed=1)
    broken.blocks[1].mlp.up.weight.data[3, 4] = float("nan")
    path = tmp_path_factory.mktemp("broken") / "model"
    native.save(broken, tokenizer, path)
    return path


def test_what_is_quantised_already(quantize, folder, tmp_path):
    quantize("int8")
    with pytest.raises(SettingError, match="quantised already; start from the original model"):
        show_quantized(str(tmp_path / "small"), str(tmp_path / "again"), "int4", "rtn", (), "cpu")
    assert not (tmp_path / "again").exists()


def test_the_model_is_not_written_over(folder):
    with pytest.raises(SettingError):
        show_quantized(folder, folder, "int8", "rtn", (), "cpu")
