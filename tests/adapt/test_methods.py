"""GPTQ and AWQ against rounding to nearest, on random layers and models."""

import pytest
import torch

from culm.adapt.lora import LoRA, plain
from culm.adapt.quantize.awq import AWQ
from culm.adapt.quantize.calibrate import Calibration, Inputs
from culm.adapt.quantize.fold import fold, foldings
from culm.adapt.quantize.gptq import GPTQ
from culm.adapt.quantize.int4 import Int4, Int4Linear, nearest
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.quantize.method import RTN
from culm.adapt.quantize.nf4 import NF4
from culm.config import SettingError, parse
from culm.model.linear import Linear
from culm.model.mlp.gated import GatedFeedForward

METHODS = [
    GPTQ(),
    GPTQ(act_order=False),
    GPTQ(act_order=False, static_groups=False),
    AWQ(),
]
SAME_HEADS = {"kind": "gqa", "heads": 4, "bias": True}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (12, 32), generator=torch.Generator().manual_seed(0))


def random_layer(inputs: int = 256, outputs: int = 48):
    drawn = torch.Generator().manual_seed(1)
    return plain(
        torch.randn(outputs, inputs, generator=drawn), torch.randn(outputs, generator=drawn)
    )


def correlated(inputs: int = 256, rows: int = 2048) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(2)
    mixing = torch.randn(inputs // 4, inputs, generator=drawn)
    return torch.randn(rows, inputs // 4, generator=drawn) @ mixing


def gram_of(x: torch.Tensor) -> torch.Tensor:
    return x.t() @ x / len(x)


def stirred(model):
    """The model with norms and biases that are not one and zero."""
    drawn = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=drawn)
    return model


def larger(model):
    """The model with blocks that change the hidden states much, unequally by channel."""
    drawn = torch.Generator().manual_seed(6)
    for name, parameter in model.blocks.named_parameters():
        if parameter.dim() == 2:
            scale = torch.rand(parameter.shape[1], generator=drawn) * 8 + 1
            parameter.data *= scale if "q" not in name and "k" not in name else 1
    return model


# -- one layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS[:3], ids=["ordered", "static", "plain"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_gptq_of_unrelated_inputs_is_rounding_to_nearest(method, group):
    layer = random_layer()
    solved = method.solve(layer, torch.eye(256), group).state_dict()
    rounded = Int4Linear.from_linear(layer, group).state_dict()
    assert solved.keys() == rounded.keys()
    assert all(torch.equal(solved[name], rounded[name]) for name in rounded)


@pytest.mark.parametrize("method", METHODS[:3], ids=["ordered", "static", "plain"])
def test_gptq_is_a_fifth_nearer_on_correlated_inputs(method):
    layer, x = random_layer(), correlated()
    fresh = correlated(rows=4096)[2048:]  # rows of the same kind that it has not seen
    solved = method.solve(layer, gram_of(x), 32)
    for seen in (x, fresh):
        error, of_nearest = (
            (seen @ (weight - layer.weight).t()).pow(2).mean()
            for weight in (solved.dequantize(), nearest(layer.weight, 32))
        )
        assert error < 0.8 * of_nearest


def test_gptq_follows_the_columns_one_by_one():
    """Against the update of the paper, whole and column by column in fp64."""
    layer, gram = random_layer(), gram_of(correlated())
    solved = GPTQ(act_order=False).solve(layer, gram, 32)
    damped = gram.double() + 0.01 * gram.diagonal().mean().double() * torch.eye(256)
    upper = torch.linalg.cholesky(damped.inverse(), upper=True)
    weight, given = layer.weight.detach().double().clone(), Int4Linear.from_linear(layer, 32)
    for j in range(256):
        scale, zero = (t[:, j // 32].double() for t in (given.scale, given.zero))
        rounded = (((weight[:, j] - zero) / scale).round().clamp(-8, 7)) * scale + zero
        error = (weight[:, j] - rounded) / upper[j, j]
        weight[:, j + 1 :] -= torch.outer(error, upper[j, j + 1 :])
        weight[:, j] = rounded
    # A tie may fall to the other side in fp32, and what follows it then differs.
    assert ((solved.dequantize() - weight).abs() < 1e-3).float().mean() > 0.99


def test_a_column_that_is_never_used_becomes_zero():
    gram = gram_of(correlated())
    gram[7], gram[:, 7] = 0, 0
    solved = GPTQ().solve(random_layer(), gram, 32)
    step = solved.scale.float().max()
    assert solved.dequantize()[:, 7].abs().max() <= 0.1 * step  # zero up to bf16 rounding
    assert solved.dequantize().isfinite().all()


def test_a_gram_matrix_without_full_rank_needs_damping():
    few = correlated(rows=20)
    assert GPTQ().solve(random_layer(), gram_of(few), 32).dequantize().isfinite().all()
    broken = -torch.eye(256)
    broken[0, 0] = 1e3
    with pytest.raises(SettingError, match=r"damping: too small for the input of down"):
        GPTQ().solve(random_layer(), broken, 32, "down")


@pytest.mark.parametrize("group", [32, 128])
def test_awq_is_nearer_than_rounding_to_nearest(group):
    strong = torch.ones(256).index_fill(0, torch.arange(5, 256, 50), 20.0)  # a few channels
    layer, x = random_layer(), correlated() * strong
    weight, inputs = layer.weight.detach(), Inputs(gram_of(x), x.abs().mean(0), x.abs().amax(0))
    of_nearest = inputs.error(nearest(weight, group) - weight)
    scale = AWQ().scale([(weight, group)], inputs)
    scaled = inputs.error(nearest(weight * scale, group) / scale - weight)
    clipped = AWQ().clipped(weight, torch.diag(x.pow(2).mean(0)), group)
    assert scaled < 0.7 * of_nearest
    of_clipped = (nearest(clipped, group) - weight).pow(2) @ x.pow(2).mean(0)
    assert of_clipped.sum() < (nearest(weight, group) - weight).pow(2).mv(x.pow(2).mean(0)).sum()


# -- a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [SAME_HEADS, {**SAME_HEADS, "kv_heads": 2}])
@pytest.mark.parametrize("norm", ["rms", {"kind": "rms", "centered": True}, "layer"])
def test_folding_a_scale_changes_no_output(tiny, tokens, attention, norm):
    model = stirred(tiny(attention=attention, norm=norm))
    before, count = model(tokens), 0
    drawn = torch.Generator().manual_seed(5)
    calibration = Calibration(model, tokens)
    for _, block in calibration:
        for source, readers in foldings(block, calibration.trace(block)):
            inputs = block.get_submodule(readers[0]).in_features
            fold(block, source, readers, torch.rand(inputs, generator=drawn) * 3 + 0.3)
            count += 1
    assert count == (8 if attention is SAME_HEADS else 6)  # shared values cannot be scaled
    assert (model(tokens) - before).abs().max() <= 1e-5 * before.abs().max()


@torch.no_grad()
def test_values_of_the_first_layer_reach_the_others(tiny, tokens):
    """What the last block reads while calibrating is what it reads in the model."""
    model = stirred(tiny(attention={**SAME_HEADS, "value_residual": True}, layers=3))
    caught = []
    model.blocks[2].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    model(tokens)
    expected = caught.pop()
    for name, block in (calibration := Calibration(model, tokens)):
        if name == "blocks.2":
            calibration.first(block)
            break
    assert torch.allclose(caught[-1], expected[: len(caught[-1])], atol=1e-6)


def test_calibration_measures_what_the_layers_read(tiny, tokens):
    model = tiny()
    seen = []
    layer = model.blocks[1].mlp.down
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    model(tokens)
    calibration = Calibration(model, tokens)
    for name, block in calibration:
        if name == "blocks.1":
            inputs = calibration.measure(block, ["mlp.down"])["mlp.down"]
    assert torch.allclose(inputs.gram, gram_of(seen[0]), rtol=1e-4, atol=1e-9)
    assert torch.allclose(inputs.magnitude, seen[0].abs().mean(0), rtol=1e-4, atol=1e-9)


def test_a_block_is_measured_after_quantised_blocks(tiny, tokens):
    model, seen = tiny(), []
    calibration = Calibration(model, tokens)
    for name, block in calibration:
        if name == "blocks.0":
            block.mlp.down.weight.data.zero_()
        else:
            seen.append(calibration.trace(block).inputs[""])
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens[:8])
    assert torch.equal(*seen)


def test_stages_are_layers_with_the_same_input(tiny, tokens):
    calibration = Calibration(tiny(), tokens)
    _, block = next(iter(calibration))
    names = [name for name, module in block.named_modules() if isinstance(module, Linear)]
    assert calibration.trace(block).stages(names) == [
        ["attention.q", "attention.k", "attention.v"],
        ["attention.out"],
        ["mlp.gate", "mlp.up"],
        ["mlp.down"],
    ]


@pytest.mark.parametrize("method", METHODS, ids=["ordered", "static", "plain", "awq"])
def test_outputs_are_nearer_than_by_rounding_to_nearest(tiny, tokens, method):
    # Weights of this size make the inputs of every layer matter.
    exact, rounded, model = (larger(tiny()) for _ in range(3))
    assert RTN().apply(rounded, [Int4()], None) == 14
    assert method.apply(model, [Int4()], tokens) == 14
    assert all(isinstance(m, Int4Linear) for m in model.blocks[0].mlp.children())
    errors = [(m(tokens) - exact(tokens)).pow(2).mean() for m in (model, rounded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("method", METHODS, ids=["ordered", "static", "plain", "awq"])
def test_what_was_quantised_can_carry_adapters(tiny, tokens, method):
    model = tiny(layers=1)
    method.apply(model, [Int4()], tokens)
    assert LoRA(rank=4).apply(model, seed=0) == 7
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    losses = []
    for _ in range(10):
        loss = -model.logprobs(tokens[:, :-1], tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("method", [GPTQ(), AWQ()])
def test_layers_without_text_are_rounded_to_nearest(tiny, tokens, method):
    model, head = tiny(tied=False), tiny(tied=False).head
    assert method.apply(model, [Int4(targets=("blocks.1.mlp.*", "head"))], tokens) == 4
    assert torch.equal(model.head.dequantize(), nearest(head.weight, 32))
    assert not any(isinstance(m, QuantizedLinear) for m in model.blocks[0].modules())


def test_the_same_text_gives_the_same_codes(tiny, tokens):
    for method in (GPTQ(), AWQ()):
        models = [tiny(layers=1), tiny(layers=1)]
        for model in models:
            method.apply(model, [Int4()], tokens)
        one, other = (model.state_dict() for model in models)
        assert all(torch.equal(one[name], other[name]) for name in one)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [GPTQ(), AWQ()])
def test_unsupported_combinations_are_refused(tiny, tokens, method):
    with pytest.raises(SettingError, match=f"calibrate: {method.kind} needs text"):
        method.apply(tiny(), [Int4()], None)
    with pytest.raises(SettingError, match=r"calibrate: 32 tokens .* fewer than the 96 inputs"):
        method.apply(tiny(), [Int4()], tokens[:1])
    with pytest.raises(ValueError, match=r"group: 64 does not divide the 96 inputs of blocks\.0"):
        method.apply(tiny(), [Int4(group=64)], tokens)
    for quantizer in (Int8(), NF4(block=32)):
        with pytest.raises(SettingError, match=f"method: {method.kind} finds codes of int4, not"):
            method.apply(tiny(), [quantizer], tokens)


def test_inputs_that_are_not_finite_are_refused(tiny, tokens):
    model = tiny()
    model.blocks[0].attention_norm.weight.data[3] = float("nan")
    for method in (GPTQ(), AWQ()):
        with pytest.raises(SettingError, match=r"calibrate: the input of attention\.q is NaN"):
            method.apply(model, [Int4()], tokens)


def test_a_scattered_group_is_refused():
    with pytest.raises(SettingError, match=r"method\.act_order: .* static_groups=true"):
        parse(GPTQ, {"static_groups": False}, "method")


def test_a_part_whose_scales_do_not_fold_is_refused(tiny, tokens, monkeypatch):
    wrong = {"x": ("gate", "up"), "gate": ("down",)}  # silu lies between gate and down
    monkeypatch.setattr(GatedFeedForward, "scale_folds", wrong)
    with pytest.raises(SettingError, match="awq does not fit a part"):
        AWQ().apply(larger(tiny()), [Int4()], tokens)
