import pytest
import torch

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes(specials=True).build()


@pytest.fixture(scope="module")
def model(tokenizer) -> LanguageModel:
    torch.set_num_threads(1)
    attention = GQA(heads=2, kv_heads=1, qk_norm="head")
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=32, layers=2, context=128, attention=(attention,)
    )
    return LanguageModel(config.build(seed=1), tokenizer)
