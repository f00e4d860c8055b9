"""docs/reference/zoo.md has every model config, with the numbers of docs/zoo_page.py."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "zoo.md"
CONFIGS = {path.stem for path in (ROOT / "culm" / "configs" / "model").glob("*.yaml")}


def test_every_config_has_a_row() -> None:
    names = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert set(names) == CONFIGS
    assert len(names) == len(CONFIGS)


def test_a_row_is_counted_by_hand() -> None:
    """nano: tied embeddings, four layers of GQA with 8 heads and 4 of keys, SwiGLU, and norms."""
    width, layers, head, hidden = 256, 4, 32, 704
    attention = width * (8 + 4 + 4) * head + 8 * head * width + 2 * head
    layer = attention + 3 * width * hidden + 2 * width
    total = 4096 * width + layers * layer + width
    found = re.search(r"^\| `nano` \| ([\d.]+) million .* ([\d.]+) MB \|$", PAGE.read_text(), re.M)
    assert found
    parameters, served = map(float, found.groups())
    assert abs(parameters - total / 1e6) < 0.06
    assert abs(served - 2 * total / 1e6) < 0.06  # bf16


@pytest.mark.slow
def test_the_page_is_what_the_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "zoo_page.py"))["page"]()
    assert PAGE.read_text(encoding="utf-8") == page, "run python docs/zoo_page.py"
