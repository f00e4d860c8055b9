"""Rotary embedding: golden numbers of its scalings, and what they must not change."""

import pytest
import torch

from culm.config import SettingError, parse
from culm.model.rope import Rope, rotate

LLAMA3 = {"kind": "llama3", "factor": 8, "low": 1, "high": 4, "original": 8192}
YARN = {"kind": "yarn", "factor": 4, "original": 2048}


def frequencies(dim: int, **settings) -> torch.Tensor:
    return parse(Rope, settings).build(dim).frequencies


def test_golden_numbers_without_scaling() -> None:
    torch.testing.assert_close(frequencies(8), torch.tensor([1, 0.1, 0.01, 0.001]))


def test_golden_numbers_of_llama3() -> None:
    expected = [
        1, 0.193922745, 0.037606031, 0.00729266474,
        0.000524846161, 3.428102196e-5, 6.647869871e-6, 1.289173172e-6,
    ]  # fmt: skip
    found = frequencies(16, base=5e5, scaling=LLAMA3)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)


def test_golden_numbers_of_yarn() -> None:
    expected = [
        1, 0.316227766, 0.1, 0.025693506, 0.00625, 0.00138349648, 0.00025, 7.905694150e-5,
    ]  # fmt: skip
    rotation = parse(Rope, {"scaling": YARN}).build(16)
    torch.testing.assert_close(rotation.frequencies, torch.tensor(expected), rtol=1e-6, atol=0)
    assert rotation.magnitude == pytest.approx(1.138629436)
    cos, _ = rotation(torch.tensor([[0]]))
    torch.testing.assert_close(cos, torch.full_like(cos, 1.138629436))
    given = parse(Rope, {"scaling": {**YARN, "attention": 1.0}}).build(16)
    assert given.magnitude == 1.0


def test_linear_slows_all_pairs_and_ntk_the_slowest() -> None:
    plain = frequencies(16)
    torch.testing.assert_close(frequencies(16, scaling={"kind": "linear", "factor": 4}), plain / 4)
    ntk = frequencies(16, scaling={"kind": "ntk", "factor": 4})
    assert ntk[0] == plain[0]
    torch.testing.assert_close(ntk[-1], plain[-1] / 4)


@pytest.mark.parametrize("kind", ["linear", "ntk", "llama3", "yarn"])
def test_a_factor_of_one_changes_nothing(kind: str) -> None:
    settings = {"kind": kind, "factor": 1} | ({"original": 2048} if kind == "yarn" else {})
    torch.testing.assert_close(frequencies(16, scaling=settings), frequencies(16))


@pytest.mark.parametrize("scaling", [None, LLAMA3, {**YARN, "attention": 1.0}])
def test_dot_products_depend_on_distance_only(scaling: dict | None) -> None:
    rotation = parse(Rope, {"scaling": scaling}).build(16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def product(query: int, key: int) -> torch.Tensor:
        turned = [rotate(x, rotation(torch.tensor([[at]]))) for x, at in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(7, 3), product(107, 103), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(q, rotation(torch.tensor([[5]]))).norm(), q.norm())


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "linear", "factor": 0.5}, r"scaling\S*\.factor: "),
        ({**LLAMA3, "low": 5}, "low: 5.0 is not less than high=4.0"),
        ({**YARN, "slow": 40}, "slow: 40.0 is not less than fast=32.0"),
        ({"kind": "yarn", "factor": 4}, r"original: "),
        ({"kind": "dynamic", "factor": 4}, r"'dynamic'"),
    ],
)
def test_impossible_scalings(scaling: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse(Rope, {"scaling": scaling})
