"""Whether a model can be divided over the ranks of a layout, before a process is started."""

from __future__ import annotations

from typing import Protocol, cast

from torch import nn

from culm.config import SettingError
from culm.model.block import Block
from culm.model.linear import GroupedLinear, Linear
from culm.model.mlp.moe import MixtureOfExperts
from culm.model.transformer import Transformer
from culm.parallel.pieces import layers_of
from culm.parallel.settings import ParallelConfig


def check_layout(model: Transformer, settings: ParallelConfig) -> None:
    """Refuse a layout whose axes do not divide the model.

    Raises:
        SettingError: with the setting, the part of the model, and what would fit.
    """
    if settings.expert > 1:
        _check_experts(model, settings.expert)
    if settings.context > 1 and model.config.masked:
        raise SettingError(
            "parallel.context: its attention is causal, and this model fills in masked tokens; set "
            "it to 1, and use tensor or data: fsdp"
        )
    for number, block in enumerate(model.every_block):
        where = f"layer {number}"
        if settings.tensor * settings.context > 1:
            _check_parts(block, where)
        if settings.context > 1:
            _check_context(block, settings, where)
        if settings.tensor > 1:
            _check_tensor(block, settings.tensor, where)


def check_divisible(objective: nn.Module, settings: ParallelConfig) -> None:
    """Refuse a layout that divides a model of which every rank needs all.

    Raises:
        SettingError: with the setting that would fit.
    """
    if settings.data == "ddp" and settings.ranks_per_model == settings.expert == 1:
        return
    for model in objective.modules():
        if isinstance(model, Transformer) and not model.divisible:
            raise SettingError(
                f"parallel: a {model.config.kind} model is not divided over ranks; use data: ddp "
                "alone, which gives each a copy"
            )


class PipelinedObjective(Protocol):
    """What may keep an objective from a pipeline."""

    @property
    def calls_twice(self) -> bool: ...

    @property
    def changes_embeddings(self) -> bool: ...


def check_pipeline(
    objective: nn.Module, settings: ParallelConfig, holders: int = 1, compile: bool = False
) -> None:
    """Refuse a pipeline that does not divide the models of an objective, which are still whole.

    holders: ranks with the same layers. compile: whether blocks are compiled.

    Raises:
        SettingError: with the setting, and what would fit.
    """
    asked = cast(PipelinedObjective, objective)
    if asked.calls_twice:
        raise SettingError(
            "parallel.pipeline: the policy without its adapter is the reference here, and a "
            "pipeline computes each model once in a step; use parallel.data=fsdp, or "
            "train.objective.reference=precomputed where the objective has it"
        )
    if asked.changes_embeddings:
        raise SettingError(
            "train.objective.neftune: the stage that computes the loss of a pipeline has no "
            "embeddings to add noise to; leave it out, or use parallel.data=fsdp"
        )
    models = [part for part in objective.modules() if isinstance(part, Transformer)]
    if settings.pipeline_schedule == "zero_bubble" and any(m.config.mtp for m in models):
        raise SettingError(
            "parallel.pipeline_schedule: zero_bubble cannot divide the backward of multi-token "
            "prediction, which reads the embedding and the head twice; use interleaved"
        )
    if settings.pipeline_schedule == "zero_bubble" and (compile or holders > 1):
        whole = (
            "train.compile compiles it whole"
            if compile
            else f"{holders} ranks with the same layers add up their gradients after a whole one"
        )
        raise SettingError(
            f"parallel.pipeline_schedule: zero_bubble divides a backward in two, and {whole}; use "
            "interleaved"
        )
    for model in models:
        _check_stages(model, settings)


def _check_stages(model: Transformer, settings: ParallelConfig) -> None:
    stages = layers_of(settings.stages, model.config.layers)
    if not all(stages):
        raise SettingError(
            f"parallel.pipeline: {model.config.layers} layers do not divide over {len(stages)} "
            f"stages ({settings.pipeline_schedule} on {settings.pipeline} ranks); use fewer ranks"
        )
    learns = [
        any(p.requires_grad for layer in stage for p in model.blocks[layer].parameters())
        for stage in stages
    ]
    if any(learns) and not all(learns):
        first = stages[learns.index(False)]
        raise SettingError(
            f"parallel.pipeline: layers {first.start} to {first.stop - 1} are a stage in which "
            "nothing learns; use fewer ranks, or let train.adapter.targets name all layers"
        )


def check_micro_batches(settings: ParallelConfig, count: int) -> None:
    """Refuse a number of micro-batches (of a data rank) that leaves ranks idle, or that the
    schedule cannot order.

    Raises:
        SettingError: with what would fit.
    """
    ranks, advice = settings.pipeline, "lower train.micro_batch_size or raise train.batch_size"
    if count < ranks:
        raise SettingError(
            f"train.micro_batch_size: a pipeline of {ranks} ranks needs as many micro-batches in a "
            f"step, and each data-parallel rank has {count}; {advice}"
        )
    rounds = max(1, count // ranks)
    if settings.pipeline_schedule == "interleaved" and count % rounds:
        raise SettingError(
            f"train.micro_batch_size: interleaved takes {count} micro-batches in {rounds} rounds, "
            f"which do not divide them; choose a multiple of {ranks} micro-batches: {advice}"
        )


def _check_experts(model: Transformer, ranks: int) -> None:
    mixtures = [b.mlp for b in model.every_block if isinstance(b.mlp, MixtureOfExperts)]
    if not mixtures:
        raise SettingError("parallel.expert: the model has no experts; set it to 1")
    for moe in mixtures:
        for part in (moe.experts.gate, moe.experts.up, moe.experts.down):
            if not isinstance(part, GroupedLinear):
                raise SettingError(
                    f"parallel.expert: {type(part).__name__} cannot be divided; set it to 1, and "
                    "use data: fsdp, which leaves packed weights whole"
                )
        if moe.config.experts % ranks:
            raise SettingError(
                f"parallel.expert: {ranks} ranks do not divide {moe.config.experts} experts"
            )


def _check_parts(block: Block, where: str) -> None:
    """Experts whose settings count the tokens of whole rows, of which a rank has a part."""
    if not isinstance(block.mlp, MixtureOfExperts):
        return
    config = block.mlp.config
    for name, given in (
        ("sequence_balance_loss", config.sequence_balance_loss), ("capacity", config.capacity),
    ):  # fmt: skip
        if given:
            raise SettingError(
                f"model.mlp.{name}: the experts of {where} count the tokens of whole rows, of "
                "which tensor- and context-parallel ranks have parts; leave it out, or use "
                "data: fsdp and expert alone"
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


def may_have(settings: ParallelConfig, micro_batches: int) -> bool:
    """Whether `check_micro_batches` accepts as many."""
    try:
        check_micro_batches(settings, micro_batches)
    except SettingError:
        return False
    return True
