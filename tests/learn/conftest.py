"""Progress of these tests goes to a folder of their own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "learn.json"
    monkeypatch.setenv("CULM_LEARN", str(path))
    return path
