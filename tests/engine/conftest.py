import pytest
import torch

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A tiny model whose weights are large enough that its choices are clear."""
    torch.set_num_threads(1)
    attention = GQA(heads=4, kv_heads=2, qk_norm="head")
    config = TransformerConfig(
        vocabulary=61, width=32, layers=2, context=96, attention=(attention,), tied=False
    )
    built = config.build(seed=3).eval()
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return built
