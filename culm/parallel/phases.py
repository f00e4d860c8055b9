"""Named ranges around the phases of a step: data, forward, backward, clip, optimizer.

They are in traces of torch.profiler, and on an NVIDIA GPU in those of Nsight Systems too (NVTX).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from culm.parallel.pulse import Pulse


@contextmanager
def phase(name: str, pulse: Pulse) -> Iterator[None]:
    """What runs within it is shown as `name`; without a profiler it costs some microseconds.

    pulse: of this rank, which counts the phase.
    """
    pulse.phase()
    with record_function(name):
        if not torch.cuda.is_available():
            yield
        else:
            with torch.cuda.nvtx.range(name):
                yield
    pulse.phase()
