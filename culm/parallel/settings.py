"""How the processes of a run share its work: a number of ranks on each axis of the mesh."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from culm.config import Config, SettingError, refuse_unused

# How attention reads rows of which each context-parallel rank holds a part: all keys and values are
# gathered (as Llama 3, arXiv 2407.21783), or heads are exchanged for tokens (arXiv 2309.14509), or
# keys and values travel in a ring (arXiv 2310.01889).
ContextMethod = Literal["allgather", "ulysses", "ring"]
# The order in which the ranks of a pipeline compute micro-batches: all forwards first (GPipe, arXiv
# 1811.06965); one forward, one backward (arXiv 2104.04473), of one stage a rank or of several
# (interleaved); or with the gradients of weights computed later, while a rank would wait (ZB-V,
# arXiv 2401.10241).
PipelineSchedule = Literal["1f1b", "interleaved", "zero_bubble", "gpipe"]


class ParallelConfig(Config):
    """data: data-parallel ranks hold copies of the weights (ddp) or shards of them (fsdp, FSDP2).
    They are all ranks that the other axes leave.

    replicas: with fsdp, the number of copies of the weights, each sharded over its own ranks
        (HSDP): as many as there are machines keeps the exchange of weights inside a machine.
    tensor: ranks that share each matmul, with sequence and loss parallelism (arXiv 1909.08053,
        2205.05198).
    context: ranks that share the tokens of each row. context_method: how attention then reads keys
        and values of other ranks: all are gathered (allgather, arXiv 2407.21783), tokens are
        exchanged for heads (ulysses, arXiv 2309.14509), or they travel in a ring (ring, arXiv
        2310.01889).

    expert: ranks that share the experts of each layer; tokens travel to them (arXiv 2006.16668).
        They are ranks of the other axes, data ones too.
    pipeline: ranks that have different layers, through which the micro-batches of a step pass.
        pipeline_schedule: in which order: all forwards before the backwards (gpipe, arXiv
        1811.06965); one forward, one backward (1f1b, arXiv 2104.04473); the same of several stages
        on each rank (interleaved); or two stages on each rank, in the form of a V, with the
        gradients of weights computed while a rank would wait (zero_bubble, arXiv 2401.10241).
    stages_per_rank: with interleaved, groups of neighbouring layers on each rank; more wait less,
        and send more.

    It applies when a launcher started several processes; a single process ignores it.
    """

    data: Literal["ddp", "fsdp"] = "ddp"
    replicas: PositiveInt = 1
    tensor: PositiveInt = 1
    context: PositiveInt = 1
    expert: PositiveInt = 1
    context_method: ContextMethod = "allgather"
    pipeline: PositiveInt = 1
    pipeline_schedule: PipelineSchedule = "1f1b"
    stages_per_rank: Annotated[int, Field(ge=2)] = 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.replicas > 1 and self.data == "ddp":
            raise ValueError("replicas: ddp has a copy on each rank; set data to fsdp")
        interleaved = self.pipeline_schedule == "interleaved"
        refuse_unused(self, "stages_per_rank", interleaved, "pipeline_schedule=interleaved")
        return self

    @property
    def ranks_per_model(self) -> int:
        """Ranks that compute each row together."""
        return self.tensor * self.context * self.pipeline

    @property
    def stages(self) -> int:
        """Of the pipeline, over all of its ranks."""
        match self.pipeline_schedule:
            case "interleaved":
                return self.pipeline * self.stages_per_rank
            case "zero_bubble":
                return self.pipeline * 2
            case _:
                return self.pipeline

    def rank_of_stage(self, stage: int) -> int:
        """The rank of the pipeline that computes it."""
        if self.pipeline_schedule == "zero_bubble" and stage >= self.pipeline:
            return self.stages - 1 - stage
        return stage % self.pipeline

    def data_ranks(self, ranks: int) -> int:
        """Ranks with rows of their own, among this many processes.

        Raises:
            SettingError: the axes do not divide them.
        """
        per = self.ranks_per_model
        if ranks % per:
            raise SettingError(
                f"parallel: tensor={self.tensor} times context={self.context} times pipeline="
                f"{self.pipeline} needs a multiple of {per} ranks, and there are {ranks}; start "
                "another number, or change the axes"
            )
        data = ranks // per
        if data % self.replicas:
            raise SettingError(
                f"parallel.replicas: {self.replicas} copies of the weights do not divide over "
                f"{data} data-parallel ranks"
            )
        same = ranks // self.pipeline  # that have the same layers
        if same % (self.expert * self.replicas):
            raise SettingError(
                f"parallel.expert: {self.expert} times replicas={self.replicas} does not divide "
                f"{same} ranks"
            )
        return data
