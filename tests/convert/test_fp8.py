"""Folders in fp8 with scales of blocks, which transformers dequantises as we do."""

import json
import re
from pathlib import Path

import pytest
import torch
from family_models import logits_of, strong
from safetensors.torch import load_file, save_file

from culm.config import SettingError
from culm.convert import hf
from culm.convert.hf.fp8 import dequantized

transformers = pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
BLOCKS = (8, 4)  # transformers reads those alone that fill every matrix


def packed(weight: torch.Tensor, blocks=BLOCKS) -> tuple[torch.Tensor, torch.Tensor]:
    """In fp8, and the scales: the greatest number of a block becomes the greatest there is."""
    rows, columns = blocks
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = []
    for top in range(0, weight.shape[0], rows):
        for left in range(0, weight.shape[1], columns):
            block = weight[top : top + rows, left : left + columns]
            scales.append(block.abs().max() / 448)
            out[top : top + rows, left : left + columns] = (block / scales[-1]).to(out.dtype)
    return out, torch.stack(scales).view(-(-weight.shape[0] // rows), -1)


# As it was published; the rest is what transformers writes today.
PUBLISHED_PACKING = {"fmt": "e4m3", "modules_to_not_convert": ["lm_head"]}


@pytest.fixture(params=[("DeepSeek-V3", PUBLISHED_PACKING), ("Qwen3", {})])
def folder(request, tokenizer, tmp_path) -> Path:
    """A model as transformers wrote it, packed."""
    given = dict(PUBLISHED[request.param[0]])
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.dtype = torch.float32
    strong(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if re.search(r"_proj\w*\.weight$", name):
            tensors[name], tensors[f"{name}_scale_inv"] = packed(tensor)
        else:
            tensors[name] = tensor
    assert sum(name.endswith("_scale_inv") for name in tensors) > 5
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    packing = transformers.FineGrainedFP8Config(weight_block_size=BLOCKS)
    given["quantization_config"] = {**json.loads(packing.to_json_string()), **request.param[1]}
    (tmp_path / "config.json").write_text(json.dumps(given))
    tokenizer.save(tmp_path)
    return tmp_path


def test_read_as_transformers_reads_it(folder):
    packing = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=BLOCKS)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=packing, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if "_proj" in name and weight.dim() > 1:  # which are bf16 here
                weight.copy_(weight.bfloat16())
    model, _ = hf.load(folder)
    rows = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    assert (model.eval()(rows) - logits_of(peer, rows)).abs().max() <= 1e-4


def test_blocks_that_do_not_fill_a_matrix():
    """As 576 rows of DeepSeek's latent in blocks of 128; the parts come in either order."""
    torch.manual_seed(0)
    weights = {"a": torch.randn(20, 33), "b": torch.randn(7, 5), "c": torch.randn(24, 32)}
    parts = {name: packed(weight, (8, 16)) for name, weight in weights.items()}
    stream = [
        ("a", parts["a"][0]), ("b_scale_inv", parts["b"][1]), ("d", torch.ones(3)),
        ("c", parts["c"][0]), ("a_scale_inv", parts["a"][1]), ("b", parts["b"][0]),
        ("c_scale_inv", parts["c"][1]),
    ]  # fmt: skip
    found = dict(dequantized(stream, (8, 16), "folder"))
    assert found.keys() == {*weights, "d"}
    for name, weight in weights.items():
        codes, scales = parts[name]
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                wanted = codes[row, column].float() * scales[row // 8, column // 16]
                assert found[name][row, column] == wanted.bfloat16()
        assert (found[name] - weight).abs().max() < 0.2


def changed(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("folder", [("Qwen3", {})], indirect=True)
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(f"{NAME}_scale_inv"), f"tensor {NAME} is in fp8 and has no scales"),
        (lambda t: t.pop(NAME), f"tensor {NAME} has scales and is not in fp8"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.ones(2, 2)}), "does not match scales"),
        (lambda t: t.update({NAME: torch.ones(4)}), "are missing|has shape"),
        (lambda t: t.update({NAME: t[NAME].float()}), f"{NAME} has scales and is not in fp8"),
        (lambda t: t[f"{NAME}_scale_inv"].fill_(torch.nan), f"{NAME}_scale_inv contains invalid"),
        (lambda t: t[f"{NAME}_scale_inv"].fill_(torch.inf), f"{NAME}_scale_inv contains invalid"),
        (lambda t: t[f"{NAME}_scale_inv"][0].fill_(-1), f"{NAME}_scale_inv contains invalid"),
        (
            lambda t: t.update({f"{NAME}_scale_inv": t[f"{NAME}_scale_inv"].byte()}),
            r"_scale_inv contains invalid scales \(uint8\)",
        ),
    ],
)
def test_parts_that_do_not_belong_together(folder, edit, words):
    changed(folder, edit)
    with pytest.raises(SettingError, match=words):
        hf.load(folder)


@pytest.mark.parametrize("folder", [("Qwen3", {})], indirect=True)
@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ({"activation_scheme": "static"}, "quantization_config.activation_scheme: 'static'"),
        ({"fmt": "e5m2"}, "quantization_config.fmt: 'e5m2' is not read here"),
        ({"weight_block_size": None}, "quantization_config.weight_block_size: None is not read"),
        ({"weight_block_size": [True, 8]}, "weight_block_size: .*True, 8.* is not read"),
        ({"weight_block_size": [0, 8]}, r"weight_block_size: \[0, 8\] is not read"),
        ({"quant_method": "awq"}, "quantization_config: 'awq' is not read here, only fp8"),
        ({"kv_cache_scheme": "x"}, "quantization_config.kv_cache_scheme: 'x' is not known"),
    ],
)
def test_other_packings_are_refused(folder, packing, words):
    given = json.loads((folder / "config.json").read_text())
    given["quantization_config"] |= packing
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(SettingError, match=words):
        hf.load(folder)
