"""What protects a run: one process a folder, signals that end it after a whole step, and a look at
the numbers before they are written.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from culm.atomic import InUseError
from culm.config import SettingError
from culm.dtensor import local_shard
from culm.files import refuse_unwritable
from culm.log import say

LOCK = ".lock"  # in the folder of a run
LARGEST = 1e18  # the square of a larger number overflows fp32: nothing can be computed with it
SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP")]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; the lock ends with the process, however it ends."""
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder}: a file; choose another name for the folder")
    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(
            f"{folder}: another process is running here; wait for it, end it, "
            "or give this run another folder=..."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Interruption:
    """Asks for a stop at the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("Stopping after this step; press Ctrl-C again to stop at once.")

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Handle signals for the duration, then put the old handlers back.

        A signal that is ignored, as SIGHUP under nohup, stays ignored.
        """
        numbers = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        before = [signal.signal(number, self._ask) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@torch.no_grad()
def first_unusable(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite, or too large to compute with.

    Of a sharded tensor, the shard of this rank is inspected.
    """
    for name, tensor in tensors.items():
        own = local_shard(tensor)
        if not own.is_floating_point() or not own.numel():
            continue
        if not float(torch.linalg.vector_norm(own.detach(), float("inf"))) < LARGEST:  # also NaN
            return name
    return None
