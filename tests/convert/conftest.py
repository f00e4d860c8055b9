import os
from pathlib import Path

import pytest
import torch

from culm.config import parse
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

torch.set_num_threads(1)

TEXT = "Once upon a time there were 12 little foxes, and each of them was called Fox. " * 4


def build(**settings) -> Transformer:
    values = {
        "vocabulary": 320,
        "width": 64,
        "layers": 2,
        "context": 64,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2},
        "mlp": {"kind": "swiglu", "hidden": 96},
        **settings,
    }
    return shaken(parse(TransformerConfig, values).build(seed=1))


def shaken(model: Transformer) -> Transformer:
    """Norms away from one and larger weights, so that a mixed-up tensor shows in the logits."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.05))
    return model


@pytest.fixture(scope="session")
def tiny():
    """Builds a small model with given settings."""
    return build


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return BPE(vocabulary=300).build([TEXT])


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    return torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real files that some tests read."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CULM_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no test data: set CULM_DATA")
    return folder
