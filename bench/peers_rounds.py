"""What contenders of several tables share: a timed round, and the same model for transformers."""

import time
from collections.abc import Callable

from culm.verbs.bench import Size

Round = Callable[[], float]  # does the work once; returns its seconds


def timed(step: Callable[[], None]) -> Round:
    def call() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return call


def llama(size: Size):
    """The same shape for transformers."""
    from transformers import LlamaConfig

    shape, attention = size.model, size.model.attention[0]
    return LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=attention.heads, num_key_value_heads=attention.kv_heads,
        intermediate_size=shape.mlp[0].hidden, max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
