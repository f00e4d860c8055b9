"""Small models with the parts that the targets ask about."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from culm.config import parse
from culm.convert import native
from culm.model.transformer import TransformerConfig
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

torch.set_num_threads(1)

TEXT = "Once upon a time there were 12 little foxes, and each of them was called Fox. " * 4


@pytest.fixture(scope="session")
def chat_tokenizer() -> Tokenizer:
    return BPE(vocabulary=300).build([TEXT]).with_chat()


@pytest.fixture
def model_folder(tmp_path: Path, chat_tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a model of given settings; `tokenizer="bytes"` for one that llama.cpp cannot have."""

    def write(tokenizer: str = "bpe", name: str = "tiny", **settings: object) -> Path:
        words = chat_tokenizer if tokenizer == "bpe" else Bytes(specials=True).build()
        values = {
            "vocabulary": 320, "width": 64, "layers": 2, "context": 256,
            "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2},
            "mlp": {"kind": "swiglu", "hidden": 96}, **settings,
        }  # fmt: skip
        model = parse(TransformerConfig, values).build(seed=1)
        native.save(model, words, tmp_path / name)
        return tmp_path / name

    return write
