"""Give a trained model a longer context by scaling its rotary embeddings (`culm.model.rope`)."""

from __future__ import annotations

from typing import Any, cast

from pydantic import PositiveInt
from torch import nn

from culm.config import Config, SettingError
from culm.model.block import Block
from culm.model.rope import Rope, Scaling, YaRNScaling
from culm.model.transformer import Transformer


class Extend(Config):
    """context: tokens of a row from now on. scaling: of the rotary embeddings; YaRN
    (arXiv 2309.00071) by the ratio of the contexts unless given.

    Layers with a window that lies within the old context, and layers without rotary embeddings,
    stay as they are. A few hundred steps on long texts let the model get used to it.
    """

    context: PositiveInt
    scaling: Scaling | None = None

    def apply(self, model: Transformer) -> None:
        """Change the model in place; its weights stay.

        Raises:
            SettingError: the context is not longer, has learned positions, or has been extended.
        """
        old = model.config
        if self.context <= old.context:
            raise SettingError(f"extend.context: the model reads {old.context} tokens already")
        if old.learned_positions or old.kind != "transformer":
            raise SettingError("extend: a model with learned positions, or of patches, cannot grow")
        attention = tuple(self._extended(part, old.context) for part in old.attention)
        new = old.model_copy(update={"context": self.context, "attention": attention})
        rotaries = new.rotaries
        model.rotations = nn.ModuleList(rope.build(size) for rope, size in rotaries)
        model.rotations.to(model.device)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        # Heads of multi-token prediction, after the layers, are like the last of them.
        parts = [*new.attentions, *[new.attentions[-1]] * len(model.mtp)]
        for block, part in zip(blocks, parts, strict=True):
            layer = cast(Any, block.attention)  # each kind has its own settings
            layer.config = part
            if (rotary := part.rotary(new.width)) is not None:
                layer.rotation = rotaries.index(rotary)
        model.config = new

    def _extended(self, part: Any, context: int) -> Any:
        """The settings of an attention. context: the old one."""
        rope, window = getattr(part, "rope", None), getattr(part, "window", None)
        if rope is None or (window is not None and window <= context):
            return part
        return part.model_copy(update={"rope": self._slower(rope, context)})

    def _slower(self, rope: Rope, context: int) -> Rope:
        scaling = self.scaling
        if scaling is None:
            if rope.scaling is not None:
                raise SettingError(
                    f"extend.scaling: the model has {rope.scaling.kind} scaling already; say what "
                    "is to take its place"
                )
            scaling = YaRNScaling(factor=self.context / context, original=context)
        return rope.model_copy(update={"scaling": scaling})
