"""The table of docs/reference/models.md: measured here, and written with `--write-tables`."""

import copy
import re

import pytest
import torch
from family_models import FAMILIES, logits_of, peer_of, saved
from test_gguf_families import WITHOUT

from culm.adapt.lora import LoRA, LoRALinear
from culm.adapt.merge import merge
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.convert import gguf, hf
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling

transformers = pytest.importorskip("transformers")
COLUMNS = ("read", "written", "cached", "LoRA", "int8", "int4", "GGUF")
HEAD = """\
# Models of other libraries

`pytest tests/convert/test_parity_table.py --write-tables` writes this page from random tiny models of
every family, with logits of a standard deviation of about one. Numbers are the maximum difference of
a logit in fp32, in eight rows. Those of int8 and int4 are the relative change of the logits when
weights are rounded to nearest: they show that quantising works, not how much a trained model loses.

| column | is |
|---|---|
| read | our logits for a folder written by transformers |
| written | logits of transformers for a folder written by us |
| cached | log-probabilities of greedily decoded tokens: our engine with its cache, transformers on the full text |
| LoRA | an adapter on its layers, and merged into them |
| int8, int4 | quantised, compared with the original |
| GGUF | written in F32 and read back; `tests/convert/test_gguf_families.py` compares llama.cpp's logits with ours |

"""  # noqa: E501
FOOT = """
No GGUF: llama.cpp does not compute the windows of Mistral and Phi-3, so a file would describe
another model. Without a window they are Llama models, and are written as such.

A family is one file in `culm/convert/hf/families` (for GGUF in `culm/convert/gguf/families`): it
reads and writes settings, and names the tensors. A model belongs to the first family that writes it
and reads back the same model. A model with parts that no family has is exported as a Culm folder,
and a message says who cannot load it and which setting is the reason; for GGUF it is refused.

Weights are read in fp32, bf16 and fp16; in fp8 with a scale per block of a matrix, as DeepSeek-V3
and others are published; and in MXFP4, as GPT-OSS is. The last two are dequantised to
bf16.
"""


def measure(name, tokenizer, folder) -> dict[str, str]:
    """One row."""
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 300, (8, 50), generator=drawn)
    peer = peer_of(name)
    model, _ = hf.load(saved(peer, tokenizer, folder / "theirs"))
    expected, found = logits_of(peer, rows), model.eval()(rows).detach()
    row = {"read": _far(found, expected)}
    hf.export(model, tokenizer, folder / "ours", family=FAMILIES[name][0])
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "ours")
    row["written"] = _far(logits_of(again, rows), found)
    row["cached"] = _cached(model, peer, rows)
    row["LoRA"] = _adapted(copy.deepcopy(model), rows)
    for column, quantizer in (("int8", Int8()), ("int4", Int4())):
        small = copy.deepcopy(model)
        assert quantizer.apply(small) > 0
        row[column] = f"{(small(rows) - found).norm() / found.norm():.1%}"
    row["GGUF"] = "none" if name in WITHOUT else _gguf(model, tokenizer, rows, folder)
    return row


def _far(found, expected) -> str:
    return f"{(found - expected).abs().max():.0e}"


def _cached(model, peer, rows) -> str:
    prompts = [row[: 9 + 5 * i].tolist() for i, row in enumerate(rows)]
    requests = [Request(tuple(prompt), 12, Sampling(temperature=0)) for prompt in prompts]
    most = torch.zeros(())
    for prompt, done in zip(prompts, Engine(model, 4, 64).generate(requests), strict=True):
        logprobs = logits_of(peer, torch.tensor([[*prompt, *done.tokens]])).log_softmax(-1)
        best = logprobs[0, len(prompt) - 1 : -1].max(-1)
        assert best.indices.tolist() == list(done.tokens)
        most = most.maximum((best.values - torch.tensor(done.logprobs)).abs().max())
    return f"{most:.0e}"


def _adapted(model, rows) -> str:
    LoRA(rank=4).apply(model, seed=0)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.b, std=0.05, generator=torch.Generator().manual_seed(1))
    adapted = model.eval()(rows)
    merge(model)
    return _far(model(rows), adapted)


def _gguf(model, tokenizer, rows, folder) -> str:
    gguf.export(model, tokenizer, folder / "m.gguf", "f32")
    return _far(gguf.load(folder / "m.gguf")[0].eval()(rows), model(rows))


@pytest.mark.slow
def test_the_table(root, tokenizer, tmp_path, request):
    path = root / "docs" / "reference" / "models.md"
    lines = ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in FAMILIES:
        row = measure(name, tokenizer, tmp_path / name.replace(" ", "-"))
        for column in ("read", "written", "cached", "LoRA", "GGUF"):
            assert row[column] == "none" or float(row[column]) <= 1e-4, (name, column)
        assert float(row["int8"].rstrip("%")) < float(row["int4"].rstrip("%")) < 100, name
        lines.append(f"| {name} | " + " | ".join(row[column] for column in COLUMNS) + " |")
    table = "\n".join(lines) + "\n"
    if request.config.getoption("--write-tables"):
        path.write_text(HEAD + table + FOOT)
    # Numbers differ by machine; what is there, and what is not, does not.
    assert _shape(path.read_text()) == _shape(HEAD + table + FOOT)


def _shape(text: str) -> str:
    return re.sub(r"\d[\d.]*(e-\d+|%)", "*", re.sub(r"\b0e\+00\b", "1e-9", text))
