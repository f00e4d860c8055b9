"""fp8: each layer against torchao's own, emulated on a CPU; and what is refused."""

import pytest
import tiny
import torch
from learning import Given, build, fit

from culm.adapt import float8
from culm.adapt.float8 import Float8Linear, check_float8, use_float8
from culm.config import SettingError
from culm.model.linear import Linear
from culm.objective.next_token import NextToken


def test_the_same_as_torchao() -> None:
    """Output and gradients in bf16, of a number of tokens that is no multiple."""
    training = pytest.importorskip("torchao.float8")
    ours = Linear(32, 48, bias=True)
    torch.manual_seed(0)
    for parameter in ours.parameters():
        parameter.data.normal_()
    plain = torch.nn.Linear(32, 48, dtype=torch.bfloat16)
    plain.load_state_dict(ours.state_dict())
    config = training.Float8LinearConfig(emulate=True, pad_inner_dim=True)
    model = training.convert_to_float8_training(torch.nn.Sequential(plain), config=config)
    ours, found = Float8Linear(ours, emulate=True), []
    for layer in (ours, model):
        x = torch.linspace(-3, 3, 2 * 7 * 32).reshape(2, 7, 32).bfloat16().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(p.grad.bfloat16() for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ours.eval()(x), torch.nn.functional.linear(x, plain.weight, plain.bias))


def test_a_model_learns_with_the_same_names() -> None:
    pytest.importorskip("torchao.float8")
    losses = []
    for emulated in (False, True):
        objective = build(NextToken(), tiny.model())
        names = list(objective.state_dict())
        if emulated:
            assert use_float8(objective.model, emulate=True) == 14
        assert list(objective.state_dict()) == names
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        losses.append([step.loss for step in fit(objective, Given([tiny.rows()]), 4, optimizer)])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_what_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'culm\[fp8\]'"):
        check_float8(torch.device("cpu"))
    monkeypatch.setattr(float8, "find_spec", lambda name: object())
    with pytest.raises(SettingError, match="cpu has no fp8, which needs an NVIDIA GPU"):
        check_float8(torch.device("cpu"))
