"""Make a language model fill in masked tokens."""

from __future__ import annotations

from culm.adapt.grow import grow
from culm.config import SettingError
from culm.model.transformer import Transformer, TransformerConfig


def with_mask(model: Transformer) -> None:
    """Add a row for the mask, in place, and let tokens see those after them
    (`culm.model.transformer`, `masked`). Heads of multi-token prediction are removed.

    Raises:
        SettingError: the model is no plain transformer.
        ValueError: an attention cannot see later tokens.
    """
    if type(model) is not Transformer:
        raise SettingError(
            f"model.kind: {model.config.kind} cannot fill in masked tokens; use a transformer"
        )
    model.drop_mtp()
    size = model.config.vocabulary
    TransformerConfig.model_validate({**dict(model.config), "masked": True})
    grow(model, size, size + 1)
    model.config = model.config.model_copy(update={"masked": True})
