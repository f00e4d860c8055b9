"""What a caller needs of a model: logits of tokens, of the next one, or text from text."""

from __future__ import annotations

from culm.config import SettingError
from culm.model.transformer import Transformer


def predicts_text(model: Transformer) -> bool:
    """Whether a model says from the tokens before it which token is next."""
    config = model.config
    return config.head == "vocabulary" and not config.masked and model.reads_tokens_alone


def require_vocabulary(model: Transformer) -> None:
    """Refuse a model that gives no logits of tokens.

    Raises:
        SettingError: its output head is scalar.
    """
    if model.config.head == "scalar":
        raise SettingError(
            "model: it has a scalar head, which can neither generate nor score text; use a model "
            "with head=vocabulary"
        )


def require_next_token(model: Transformer) -> None:
    """Refuse a model that gives no logits of the next token.

    Raises:
        SettingError: its output head is scalar, or it fills in masked tokens.
    """
    require_vocabulary(model)
    if model.config.masked:
        raise SettingError(
            "model: it fills in masked tokens, and has no probability of a next token; culm "
            "generate and the held_out measure work with it"
        )


def require_text(model: Transformer) -> None:
    """Refuse a model that cannot say from the tokens before it which token is next.

    Raises:
        SettingError: it gives no logits of the next token, or needs a concept for them.
    """
    require_next_token(model)
    require_tokens_alone(model)


def require_tokens_alone(model: Transformer) -> None:
    """Refuse a model whose forward needs more than tokens.

    Raises:
        SettingError: it needs a concept for each sentence.
    """
    if not model.reads_tokens_alone:
        raise SettingError(
            "model: its decoder writes a sentence from a concept, not from the tokens before it; "
            "culm generate, culm.load and train.objective=lcm work with it"
        )
