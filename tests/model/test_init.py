"""Initial weights: golden numbers, the three rules, the same for every layout."""

import pytest
import torch

from culm.config import SettingError, parse
from culm.model.attention.gqa import GQA
from culm.model.init import GPT2, Llama, Zero
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer, TransformerConfig


def built(init, layers: int = 8, **more) -> Transformer:
    settings = {"vocabulary": 300, "width": 64, "layers": layers, "attention": GQA(heads=4)}
    return TransformerConfig(**{**settings, "init": init, **more}).build(seed=3)


def test_the_default_is_that_of_gpt2_bit_for_bit() -> None:
    """Golden numbers from before the rule became a part."""
    model = TransformerConfig(vocabulary=50, width=16, layers=2, attention=GQA(heads=2)).build(7)
    golden = {
        "embed.weight": [0.010167247615754604, 0.020163340494036674, 0.016473013907670975],
        "blocks.1.attention.q.weight": [
            0.0016847132937982678,
            0.01831856742501259,
            0.006418826058506966,
        ],
        "blocks.0.mlp.down.weight": [
            -0.015016209334135056,
            -0.029321419075131416,
            0.011829543858766556,
        ],
    }
    for name, values in golden.items():
        assert model.get_parameter(name).flatten()[:3].tolist() == values, name


@pytest.mark.parametrize(("init", "shrunk"), [(GPT2(), 4.0), (Llama(), 1.0)])
def test_projections_into_the_residual_stream(init, shrunk) -> None:
    model = built(init)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            wanted = 0.02 / shrunk if residual else 0.02
            assert float(parameter.detach().std()) == pytest.approx(wanted, rel=0.05), name


def test_zero_starts_with_equal_probabilities_and_layers_without_effect() -> None:
    model = built("zero", tied=False, mlp=MoE(experts=4, hidden=32, shared=1))
    tokens = torch.arange(20)[None]
    assert model(tokens).abs().max() == 0
    assert float(model.embed.weight.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert float(model.blocks[3].attention.q.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(model.hidden(tokens), model.norm(model.embed(tokens)))
    control = built("llama", tied=False)
    assert control(tokens).abs().max() > 0


def test_std_is_a_setting() -> None:
    wide, narrow = built(Llama(std=0.08)), built(Llama(std=0.02))
    torch.testing.assert_close(wide.embed.weight, narrow.embed.weight * 4)


def test_draws_depend_on_the_name_alone() -> None:
    for init in (Llama(), Zero()):
        deep, shallow = built(init, 4, tied=False), built(init, 2, tied=False)
        name = "blocks.1.mlp.up.weight"
        assert torch.equal(deep.get_parameter(name), shallow.get_parameter(name))


def test_what_cannot_be() -> None:
    values = {"vocabulary": 9, "width": 16, "layers": 1, "attention": {"kind": "gqa", "heads": 2}}
    with pytest.raises(SettingError, match=r"model\.init: zero zeroes the output head"):
        parse(TransformerConfig, {**values, "init": "zero"}, "model")
    with pytest.raises(SettingError, match=r"model\.init\.kind: 'xavier' is not one of"):
        parse(TransformerConfig, {**values, "init": "xavier"}, "model")
    with pytest.raises(SettingError, match=r"model\.init\.std: "):
        parse(TransformerConfig, {**values, "init": {"kind": "llama", "std": 0}}, "model")


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_a_router_is_initialised_like_other_matrices(std: float) -> None:
    moe = MoE(experts=64, hidden=8)
    model = built(Llama(std=std), layers=1, width=256, mlp=moe)
    assert model.blocks[0].mlp.router.weight.std().item() == pytest.approx(std, rel=0.05)
