"""How close an objective is to a reference. Tests note it, and bench/parity.py shows the table."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pytest
from torch import Tensor


class Difference(NamedTuple):
    """Largest differences from a reference: of the loss, and of the gradients, relative to the
    largest gradient; None: the reference gives no gradients.
    """

    loss: float
    gradients: float | None = None


def assert_equal(
    ours: Tensor,
    expected: Tensor,
    gradients: Callable[[], Iterable[tuple[str, Tensor | None, Tensor | None]]],
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> Difference:
    """The same loss and gradients. gradients: name, ours and theirs, once both are computed."""
    ours.backward()
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    away, largest = 0.0, 0.0
    for name, one, other in gradients():
        assert one is not None, name
        assert other is not None, name
        assert one.shape == other.shape, name
        bound = atol + rtol * other.abs()
        assert bool(((one - other).abs() <= bound).all()), name
        away = max(away, float((one - other).abs().max()))
        largest = max(largest, float(other.abs().max()))
    assert largest > 0
    return Difference(abs(ours.item() - expected.item()), away / largest)


class Parity:
    """The comparisons of a test, recorded in the report that `pytest --junitxml` writes."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def note(self, objective: str, variant: str, reference: str, found: Difference) -> None:
        """A comparison that passed."""
        self._record("parity", json.dumps([objective, variant, reference, *found]))

    def equal(
        self,
        objective: str,
        variant: str,
        reference: str,
        found: Sequence[float],
        wanted: Sequence[float],
        within: float,
    ) -> None:
        """Compare losses of single items."""
        assert found == pytest.approx(wanted, abs=within)
        away = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
        self.note(objective, variant, reference, Difference(away))

    def golden(
        self,
        objective: str,
        variant: str,
        found: Sequence[float],
        wanted: Sequence[float],
        within: float = 1e-8,
    ) -> None:
        """Compare with numbers that were computed elsewhere in float64."""
        self.equal(objective, variant, "golden numbers", found, wanted, within)


@pytest.fixture
def parity(record_property: Callable[[str, object], None]) -> Parity:
    return Parity(record_property)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that compare: `pytest -m parity` runs no others."""
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")
