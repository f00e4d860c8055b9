"""Whether a model can be divided over the ranks of a layout, before a process is started."""

from __future__ import annotations

from torch import nn

from culm.config import SettingError
from culm.model.block import Block
from culm.model.linear import Linear
from culm.model.mlp.moe import MixtureOfExperts
from culm.model.transformer import Transformer
from culm.parallel.settings import ParallelConfig


def check_layout(model: Transformer, settings: ParallelConfig) -> None:
    """Refuse a layout whose axes do not divide the model.

    Raises:
        SettingError: with the setting, the part of the model, and what would fit.
    """
    if settings.expert > 1:
        _check_experts(model, settings.expert)
    for number, block in enumerate(model.every_block):
        where = f"layer {number}"
        if settings.context > 1:
            _check_context(block, settings, where)
        if settings.tensor > 1:
            _check_tensor(block, settings.tensor, where)


def check_pipeline(objective: nn.Module, settings: ParallelConfig, compile: bool = False) -> None:
    """Refuse a pipeline that does not divide the models of an objective, which are still whole.

    Raises:
        SettingError: with the setting, and what would fit.
    """
    stages = settings.stages
    for model in (part for part in objective.modules() if isinstance(part, Transformer)):
        if model.config.layers < stages:
            raise SettingError(
                f"parallel.pipeline: {stages} stages cannot divide {model.config.layers} layers; "
                "use fewer, or data: fsdp"
            )


def check_micro_batches(settings: ParallelConfig, count: int) -> None:
    """Whether so many micro-batches of a data rank keep a pipeline at work.

    Raises:
        SettingError: with what would fit.
    """


def _check_experts(model: Transformer, ranks: int) -> None:
    mixtures = [b.mlp for b in model.every_block if isinstance(b.mlp, MixtureOfExperts)]
    if not mixtures:
        raise SettingError("parallel.expert: the model has no experts; set it to 1")
    for moe in mixtures:
        if moe.config.experts % ranks:
            raise SettingError(
                f"parallel.expert: {ranks} ranks do not divide {moe.config.experts} experts"
            )


def _check_context(block: Block, settings: ParallelConfig, where: str) -> None:
    if not block.attention.context_parallel:
        raise SettingError(
            f"parallel.context: the attention of {where} reads the tokens of a row in their order, "
            "which one rank must hold; set it to 1, and use tensor or data: fsdp"
        )
    if settings.context_method == "ulysses":
        divided = settings.tensor if block.attention.tensor_parallel else 1
        ranks = settings.context * divided
        for heads in block.attention.heads_divided:
            if heads % ranks:
                raise SettingError(
                    f"parallel.context_method: ulysses divides the heads of {where} over {ranks} "
                    f"ranks (context times tensor), and {heads} do not divide; use allgather"
                )


def _check_tensor(block: Block, ranks: int, where: str) -> None:
    heads = block.attention.heads_divided if block.attention.tensor_parallel else ()
    for count in heads:
        if count % ranks:
            raise SettingError(
                f"parallel.tensor: {ranks} ranks do not divide the {count} heads (of queries, or "
                f"of keys and values) of {where}; use a divisor of {count}"
            )
    for part in (block.attention, block.mlp):
        for name, split in part.tensor_parallel.items():
            layer = part._modules.get(name)
            if not isinstance(layer, Linear):
                continue
            size = layer.out_features if split == "columns" else layer.in_features
            if size % ranks:
                raise SettingError(
                    f"parallel.tensor: {ranks} ranks do not divide the {size} elements of {name} "
                    f"in {where}; use a divisor of {size}"
                )
