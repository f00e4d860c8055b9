"""TensorBoard: curves of a run in the browser, by `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from culm.train.trackers.tracker import Reporter, Sample, TrackerConfig


class TensorBoard(TrackerConfig):
    """path: the folder of the event files, inside the run folder."""

    kind: Literal["tensorboard"] = "tensorboard"
    path: str = "tensorboard"

    def check(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise ImportError(
                "train.trackers: tensorboard is not installed; pip install 'culm[tensorboard]'"
            ) from None

    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> TensorBoardListener:
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        # Values of later steps, of before an interruption, are hidden.
        return TensorBoardListener(SummaryWriter(str(folder / self.path), purge_step=step + 1))


class TensorBoardListener(Reporter):
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def report(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def report_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        for number, sample in enumerate(samples):
            self._writer.add_text(f"{name}/{number}", _markdown(sample), step)

    def close(self) -> None:
        self._writer.close()


def _markdown(sample: Sample) -> str:
    """As an indented block, so that no text of a model is formatted."""
    lines = f"{sample.prompt}{sample.text}".splitlines()
    block = "\n".join(f"    {line}" for line in lines)
    return f"Temperature {sample.temperature:g}\n\n{block}"
