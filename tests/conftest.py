"""What all tests share: one thread, no network, where the shared data lie, a small tokenizer."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

# Nothing here has to outlive a power cut.
os.fsync = lambda file: None  # type: ignore[assignment]
pytest_plugins = ("stages", "judging", "vllm_stub", "parity")
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("CULM_DATA", ROOT.parent / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-tables", action="store_true", help="write tables of docs/ anew")


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Runs collect garbage before they measure memory: not through all that was imported so far."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quick_plans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of the command line count tensors only: tests/plan has the memory of a process."""
    if request.path.parent.name != "plan":
        monkeypatch.setattr("culm.verbs.plan_needs.process_bytes", lambda *given: None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Finds a file of the shared data; the test is skipped where it is not."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"no {name} in the shared data")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [
        "the quick brown fox jumps over the lazy dog. " * 20,
        "def add(a, b):\n    return a + b\n\nprint(add(12, 345))\n" * 20,
        "It's what they're saying: we'll see, won't we? Où est-ce? 東京 и Москва 🙂 " * 20,
    ]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return BPE(vocabulary=350).build(texts)
