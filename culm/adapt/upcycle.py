"""Turn dense feed-forwards of a trained model into experts (arXiv 2212.05055)."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Annotated, cast

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat
from torch import Tensor

from culm.config import Config, SettingError, listed, one_of
from culm.model.block import Block
from culm.model.init import generator
from culm.model.linear import Linear
from culm.model.mlp.gated import GatedFeedForward
from culm.model.mlp.moe import MixtureOfExperts, MoE
from culm.model.transformer import Transformer, TransformerConfig


class Upcycle(Config):
    """mlp: the experts that replace a dense feed-forward, each a copy of it; one for all layers, or
    a list that is repeated over them, in which null leaves a layer dense.

    noise: added to every expert's weights, relative to their standard deviation. Without it the
    model first computes the same as before: the weights of the chosen experts sum to one.
    """

    mlp: Annotated[
        tuple[one_of(MoE) | None, ...],  # type: ignore[valid-type]
        BeforeValidator(listed),
        Field(min_length=1),
    ]
    noise: NonNegativeFloat = 0.0

    @torch.no_grad()
    def apply(self, model: Transformer, seed: int) -> int:
        """Change the model in place; returns the number of changed layers.

        Routers and noise are initialised by name from the seed.

        Raises:
            SettingError: a layer is not dense, is quantised, or its copies would not add up to it.
        """
        tiled = list(islice(cycle(self.mlp), len(model.blocks)))
        if not any(tiled):
            raise SettingError(f"upcycle.mlp: null in all {len(tiled)} layers; name experts")
        every = {name: part for name, part in model.named_modules() if isinstance(part, Block)}
        # Heads of multi-token prediction, after the layers, are like the last of them.
        moes = [*tiled, *[tiled[-1]] * len(model.mtp)]
        chosen = {name: moe for name, moe in zip(every, moes, strict=True) if moe is not None}
        for name, moe in chosen.items():
            _check(name, moe, every[name].mlp)
        for name, moe in chosen.items():
            dense = cast(GatedFeedForward, every[name].mlp)
            every[name].mlp = self._copies(f"{name}.mlp", moe, dense, model.config, seed)
        mlps = tuple(moe or dense for moe, dense in zip(tiled, model.config.mlps, strict=True))
        model.config = model.config.model_copy(update={"mlp": mlps}).shortened()
        return len(chosen)

    def _copies(
        self, name: str, moe: MoE, dense: GatedFeedForward, config: TransformerConfig, seed: int
    ) -> MixtureOfExperts:
        with torch.device("meta"):
            built = moe.build(config.width)
        built.to_empty(device=dense.gate.weight.device).train(dense.training)
        built.router.init_weights(
            lambda part: generator(seed, f"{name}.router.{part}"), config.init.std
        )
        experts = built.experts
        for part, layer, copies in (
            ("gate", dense.gate, experts.gate),
            ("up", dense.up, experts.up),
            ("down", dense.down, experts.down),
        ):
            weight: Tensor = layer.weight.float().expand_as(copies.weight)
            if self.noise:
                noise = torch.empty(copies.weight.shape)
                noise.normal_(generator=generator(seed, f"{name}.experts.{part}.noise"))
                weight = weight + self.noise * layer.weight.std() * noise.to(weight.device)
            copies.weight.copy_(weight)
        return built


def _check(name: str, moe: MoE, dense: object) -> None:
    if not isinstance(dense, GatedFeedForward):
        raise SettingError(
            f"upcycle.mlp: {name} has no gated dense feed-forward to copy; put null there"
        )
    if not isinstance(dense.gate, Linear):
        raise SettingError(f"upcycle.mlp: {name} is quantised; start from the original model")
    needed = {
        "hidden": dense.gate.out_features,
        "activation": dense.activation,
        "bias": False,
        "shared": 0,
        "normalize": True,
        "scale": 1.0,
    }
    given = moe.model_dump()
    for setting, value in needed.items():
        if given[setting] != value:
            raise SettingError(
                f"upcycle.mlp.{setting}: {given[setting]} would change the output of {name}; "
                f"use {value}"
            )
