"""What rounding costs a model that was really trained: the order of the methods, and QAT."""

from copy import deepcopy

import pytest
import torch

from culm.adapt.quantize import Method, Quantizers
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.qat import convert, fake_quantize
from culm.adapt.quantize.quantizer import assigned, round_to_nearest
from culm.config import parse
from culm.eval.divergence import Divergence, compare
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.train import BPE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # training and eleven forms
CONTEXT, HELD_OUT = 128, 512
NOISE = 5e-4  # nats: what two losses on these rows differ by where rounding helps by chance
CONFIG = {
    "vocabulary": 512, "width": 128, "layers": 4, "context": CONTEXT, "tied": False,
    "attention": {"kind": "gqa", "heads": 4}, "mlp": {"kind": "swiglu", "hidden": 384},
}  # fmt: skip


def learn(model: Transformer, rows: torch.Tensor, steps: int, rate: float) -> None:
    """AdamW on 16 rows a step, whose rate falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.95))
    drawn = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = rows[torch.randint(0, len(rows), (16,), generator=drawn)]
        loss = -model.logprobs(batch[:, :-1], batch[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()


@pytest.fixture(scope="module")
def rows(shared):
    """(N, CONTEXT) of a play; the last ones are read by the measure alone."""
    text = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()
    tokenizer = BPE(vocabulary=512).build([text])
    ids = tokenizer.encode(text)
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


@pytest.fixture(scope="module")
def trained(rows):
    model = parse(TransformerConfig, CONFIG).build(seed=0)
    learn(model, rows[:-HELD_OUT], 500, 3e-3)
    return model.eval()


@pytest.fixture(scope="module")
def measured(trained, rows):
    """Each form of the model by name, against the model."""
    forms = {
        "int8": ("int8", "rtn"), "w8a8": ("w8a8", "rtn"),
        "smoothquant": ("w8a8", "smoothquant"), "fp8": ("fp8", "rtn"), "nf4": ("nf4", "rtn"),
        **{f"{method}-{group}": ({"kind": "int4", "group": group}, method)
           for group in (32, 128) for method in ("rtn", "gptq", "awq")},
    }  # fmt: skip

    def form(to, method) -> Divergence:
        model = deepcopy(trained)
        parse(Method, method).apply(model, parse(Quantizers, to), rows[:128])
        return compare(trained, model, rows[-HELD_OUT:])

    found = {name: form(to, method) for name, (to, method) in forms.items()}
    for name, seen in found.items():
        print(f"{name:<12} KL {seen.divergence:.5f} loss {seen.changed:.4f} "
              f"before {seen.loss:.4f} agreement {seen.agreement:.4f}")  # fmt: skip
    return found


def test_it_has_learned(measured):
    assert measured["int8"].loss < 3.8  # log 512 = 6.24


@pytest.mark.parametrize("group", [32, 128])
def test_order_of_the_methods(measured, group):
    rtn, gptq, awq = (measured[f"{method}-{group}"] for method in ("rtn", "gptq", "awq"))
    for better in (gptq, awq):
        assert 10 * measured["int8"].divergence < better.divergence < rtn.divergence
        assert better.changed < rtn.changed + NOISE  # it may even be below that of the whole model
    assert abs(measured["int8"].changed - measured["int8"].loss) < NOISE
    assert gptq.changed < rtn.changed
    assert measured["int8"].agreement > max(gptq.agreement, awq.agreement)


def test_order_of_the_kinds(measured):
    """Eight bits are better than four, integers than floats where ranges are even."""
    kinds = ("int8", "w8a8", "fp8", "rtn-32", "rtn-128")
    distances = [measured[kind].divergence for kind in kinds]
    assert distances == sorted(distances)
    assert measured["rtn-32"].divergence < measured["nf4"].divergence < 1.5 * distances[-1]


def test_training_for_int4_is_better_than_rounding_to_it(trained, rows):
    """The same further steps with and without rounding, both rounded in the end."""
    quantizers = [Int4(group=128, targets=("blocks.*", "head"))]
    plain, aware = deepcopy(trained), deepcopy(trained)
    fake_quantize(aware, quantizers)
    for model in (plain, aware):
        learn(model, rows[:-HELD_OUT], 100, 5e-4)
    whole = compare(plain, plain, rows[-HELD_OUT:]).loss
    round_to_nearest(plain, assigned(plain, quantizers))
    convert(aware)
    found = compare(plain, aware, rows[-HELD_OUT:])
    print(f"loss {whole:.4f}, rounded {found.loss:.4f}, trained for it {found.changed:.4f}")
    assert found.changed < found.loss  # by how much depends on the run: docs/log.md
