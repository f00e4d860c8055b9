"""Traces of chosen steps by torch.profiler: where their time and memory go.

profile/rank-0.json.gz      a trace, for https://ui.perfetto.dev or chrome://tracing, in which the
                            phases of a step have their names (`culm.parallel.phases`)
profile/rank-0.txt          operators by their own time
profile/rank-0.pickle       memory over time on a GPU, for https://pytorch.org/memory_viz
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import PositiveInt
from torch.profiler import ProfilerActivity, profile

from culm.config import Config
from culm.log import say
from culm.train.events import Event, Stepped

ROWS = 40  # of the table
ALLOCATIONS = 100_000  # that a snapshot holds at most


class ProfileConfig(Config):
    """first: the first step in the trace; those before it compile and warm up. steps: how many.
    memory: record allocations too, which costs time.
    """

    first: PositiveInt = 3
    steps: PositiveInt = 2
    memory: bool = False


class Profile:
    """A listener that records steps `first` to `first + steps - 1` of this run on this rank."""

    def __init__(self, settings: ProfileConfig, folder: Path, rank: int, step: int) -> None:
        """Continue after `step`."""
        self.settings, self.folder, self.rank = settings, folder, rank
        self._running: profile | None = None
        if step >= settings.first:
            say(f"train.profile: step {settings.first} is past, so there is no trace of it.")
        self._after(step)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._after(event.step)

    def close(self) -> None:
        if self._running is not None:  # the run ended within these steps
            self._finish(self._running)

    def _after(self, step: int) -> None:
        first = self.settings.first
        if self._running is not None and step >= first + self.settings.steps - 1:
            self._finish(self._running)
        elif self._running is None and step == first - 1:
            self._running = self._start()

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            if self.settings.memory:
                torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        started = profile(activities=activities, profile_memory=self.settings.memory)
        started.start()
        return started

    def _finish(self, running: profile) -> None:
        self._running = None
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / f"rank-{self.rank}"
        running.export_chrome_trace(f"{name}.json.gz")
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=by, row_limit=ROWS)
        Path(f"{name}.txt").write_text(table, encoding="utf-8")
        if self.settings.memory and torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(f"{name}.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
