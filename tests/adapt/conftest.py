import pytest
import torch

from culm.config import parse
from culm.model.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)


def build(**settings) -> Transformer:
    values = {
        "vocabulary": 96,
        "width": 64,
        "layers": 2,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2},
        "mlp": {"kind": "swiglu", "hidden": 96},
        **settings,
    }
    return parse(TransformerConfig, values).build(seed=1)


@pytest.fixture(scope="session")
def tiny():
    """Builds a small model with given settings."""
    return build
