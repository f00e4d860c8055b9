"""Sharded checkpoints: each rank writes what it holds, in the format of
torch.distributed.checkpoint (DCP), and reads what it needs, whatever ranks wrote it.

    __RANK_N.distcp, .metadata

DCP itself casts dtypes, ignores tensors that the run lacks, keeps one of several values that ranks
give under one name, and does not notice changed bytes. So kinds and names are compared before it
reads, ranks give different values under different names only, and every file has a digest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from culm.objective.objective import Trained
from culm.optim.rule import RuleOptimizer
from culm.parallel.ranks import Ranks
from culm.train.checkpoint.tensors import (
    BATCHES,
    CheckpointError,
    Kind,
    check_fit,
    moving_parameters,
    places,
    state_like,
    state_of_parameter,
    states,
)
from culm.train.guard import first_unusable

METADATA = ".metadata"
# A plain copy to memory of this process: nothing is shared, pinned or done in the background.
STAGING = StagingOptions(
    use_pinned_memory=False, use_shared_memory=False, use_async_staging=False,
    use_non_blocking_copy=False,
)  # fmt: skip


class Sharded:
    """Written and read by all ranks, each its own part."""

    name = "sharded"

    def __init__(self, objective: Trained, optimizer: RuleOptimizer) -> None:
        self.objective, self.optimizer = objective, optimizer

    def capture(self, state: Mapping[str, Tensor], ranks: Ranks, copy: bool) -> dict[str, Tensor]:
        tensors = places(self.objective) | states(self.objective, self.optimizer)
        if ranks.writer:  # all ranks have the same
            tensors |= {f"{BATCHES}{name}": value for name, value in state.items()}
        if not copy:
            return tensors
        return cast(dict[str, Tensor], DefaultStager(STAGING).stage(cast(dict[str, Any], tensors)))

    def write(self, captured: dict[str, Tensor], folder: Path, ranks: Ranks) -> list[str]:
        with _failures(folder):
            dcp.save(
                captured,
                storage_writer=dcp.FileSystemWriter(folder, overwrite=False),
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=ranks.patient,
                no_dist=ranks.patient is None,
            )
        own = sorted(path.name for path in folder.glob(f"__{ranks.process}_*.distcp"))
        return [*own, METADATA] if ranks.writer else own

    @torch.no_grad()
    def read(self, path: Path, where: str, ranks: Ranks) -> dict[str, Tensor]:
        reader = dcp.FileSystemReader(path)
        kinds = _kinds(reader)
        check_fit(self.objective, self.optimizer, kinds, where, ranks)
        tensors: dict[str, Tensor] = places(self.objective)
        state: dict[str, Tensor] = {}
        named = moving_parameters(self.objective)
        self.optimizer.state.clear()  # of a run that goes back
        for key, (shape, dtype) in kinds.items():
            name, entry = state_of_parameter(key)
            if key.startswith(BATCHES):
                state[key] = torch.empty(shape, dtype=dtype)
            elif (parameter := named.get(name)) is not None:
                empty = torch.empty(shape, dtype=dtype)
                placed = state_like(empty, parameter, entry, self.optimizer)
                tensors[key] = self.optimizer.state[parameter][entry] = placed
        with _failures(path):
            dcp.load(
                {**tensors, **state},
                storage_reader=reader,
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=ranks.patient,
                no_dist=ranks.patient is None,
            )
        broken = next((n for n in ranks.everyone(first_unusable(tensors)) if n is not None), None)
        if broken is not None:
            raise CheckpointError(
                f"{path}: {broken} is not finite; delete it to resume from the one before"
            )
        return {name.removeprefix(BATCHES): value for name, value in state.items()}


def _kinds(reader: dcp.FileSystemReader) -> dict[str, Kind]:
    held = reader.read_metadata().state_dict_metadata
    return {
        name: Kind(torch.Size(one.size), one.properties.dtype)
        for name, one in held.items()
        if isinstance(one, TensorStorageMetadata)
    }


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """What DCP raises on all ranks is no `Exception`, and tells all of their tracebacks."""
    try:
        with warnings.catch_warnings():
            # Of a single process, which is what is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise OSError(f"{path}: rank {rank}: {reason}") from error
