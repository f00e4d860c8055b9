"""Join the processes that torchrun started; without it, a run is one rank."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as distributed

from culm.parallel.mesh import build_mesh
from culm.parallel.pulse import Pulse
from culm.parallel.ranks import Ranks
from culm.parallel.settings import ParallelConfig
from culm.parallel.watch import watched

# It warns that a gather over two axes takes two exchanges, as it must.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

PATIENCE = timedelta(days=1)  # what the writer may need to prepare a corpus
JOIN = 300.0  # seconds in which all ranks must have started
TRY = timedelta(seconds=2)  # of waiting in C++, in which Python sees no signal
LATER = timedelta(minutes=30)  # torch's own limit, once all ranks are here
NEW_STORE = "CULM_NEW_STORE"  # set by `culm.parallel.torchrun`: each start has a store of its own


def take_gpu() -> None:
    """Make the GPU of this rank the current one. Call it before anything else uses a GPU."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def process_group(
    device: torch.device | str, settings: ParallelConfig = ParallelConfig()
) -> Iterator[Ranks]:
    """The ranks of this run, joined for its duration.

    A program that joined them before keeps them joined: gloo cannot reliably be joined twice.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if distributed.is_initialized():
        yield joined(device, settings)
        return
    rank, size = _join("nccl" if torch.device(device).type == "cuda" else "gloo")
    pulse = Pulse()
    with watched(_store(rank), rank, size, pulse):
        try:
            yield replace(joined(device, settings), pulse=pulse)
            # Without it a rank may leave while another still talks to it.
            distributed.barrier()
        finally:
            distributed.destroy_process_group()


def _join(backend: str) -> tuple[int, int]:
    """Join the other processes of the job; returns the rank of this one and how many there are.

    Ctrl-C and SIGTERM end the waiting.

    Raises:
        RuntimeError: some did not start; the message says which.
    """
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise RuntimeError(f"{name}: not set, though WORLD_SIZE is; start ranks with torchrun")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _store(rank)
    store.set(f"started/{rank}", "yes")
    until = time.monotonic() + JOIN
    while missing := [r for r in range(size) if not store.check([f"started/{r}"])]:
        if time.monotonic() > until:
            names = ", ".join(map(str, missing))
            raise RuntimeError(
                f"of {size} ranks, these did not start within {JOIN:.0f} seconds: {names}; their "
                "own messages say why"
            )
        time.sleep(0.2)
    store.set_timeout(LATER)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    return rank, size


def _store(rank: int) -> distributed.Store:
    """The store through which the ranks meet: that of torchrun, or one that rank 0 starts."""
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    until = time.monotonic() + JOIN
    while True:
        try:
            store = _client(is_master=rank == 0 and not of_torchrun)
            return _attempt(store) if of_torchrun else store
        except distributed.DistError as error:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"rank 0 could not be reached at {os.environ['MASTER_ADDR']}:"
                    f"{os.environ['MASTER_PORT']} within {JOIN:.0f} seconds; its own message says "
                    "why, or the port is closed"
                ) from error


def _client(is_master: bool = False) -> distributed.Store:
    return distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=is_master,
        timeout=TRY, wait_for_workers=False, multi_tenant=True,
    )  # fmt: skip


def _attempt(store: distributed.Store) -> distributed.Store:
    """The keys of this attempt: the store of torch's own torchrun outlives a restart."""
    if NEW_STORE in os.environ:
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return distributed.PrefixStore(f"attempt {attempt}", store)


def is_first_to_say(sentence: str) -> bool:
    """Whether no other rank of this attempt has asked about the same sentence: what all of them
    found is said once. True where that cannot be known, without the store of torchrun.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    digest = hashlib.sha256(sentence.encode(errors="replace")).hexdigest()
    try:
        return _attempt(_client()).add(f"said/{digest}", 1) == 1
    except (RuntimeError, ValueError, KeyError):  # torchrun has ended, or named no address
        return True


def joined(device: torch.device | str, settings: ParallelConfig) -> Ranks:
    mesh = build_mesh(device, settings)
    data = mesh.data
    return Ranks(
        rank=data.get_local_rank(),
        count=data.size(),
        writer=distributed.get_rank() == 0,
        mesh=mesh,
        shard=mesh.weights["shard"].get_local_rank(),
        patient=distributed.new_group(backend="gloo", timeout=PATIENCE),
    )
