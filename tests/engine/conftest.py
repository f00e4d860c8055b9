import pytest
from tiny_models import tiny_model

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(attention=GQA(heads=4, kv_heads=2, qk_norm="head"))
