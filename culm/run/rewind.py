"""Training with a way back: a run that meets too many spikes returns to its last checkpoint."""

from __future__ import annotations

from dataclasses import replace

from culm.log import say
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.store import Store
from culm.train.checkpoint.tensors import NotWritten
from culm.train.events import Listeners, Rewound
from culm.train.judge import TrainingError
from culm.train.spikes import TooManySpikes, WithoutSpikes
from culm.train.trainer import Batches, Trainer


def fit(
    trainer: Trainer, batches: Batches, steps: int, start: Progress, store: Store,
    listeners: Listeners,
) -> int:  # fmt: skip
    """As `Trainer.fit`; every rank takes part.

    Raises:
        TrainingError: there were too many spikes, and going back did not help or was not possible.
    """
    while True:
        try:
            return trainer.fit(batches, steps, start.step, start.tokens)
        except TooManySpikes as spikes:
            assert isinstance(batches, WithoutSpikes)
            start = _rewind(spikes, batches, start, store)
            listeners(Rewound(start.step, str(spikes)))


def _rewind(
    spikes: TooManySpikes, batches: WithoutSpikes, start: Progress, store: Store
) -> Progress:
    """Restore the last checkpoint; its next step reads what comes after the spike."""
    rewinds, read = batches.rewinds + 1, spikes.step + batches.passed
    advice = "lower train.optimizer.rate, or check the data of these steps"
    if rewinds > batches.spikes.settings.rewinds:
        times = f"went back {rewinds - 1} times before" if rewinds > 1 else "does not go back"
        raise TrainingError(f"{spikes}, and the run {times}; {advice}") from spikes
    try:
        store.wait()
    except NotWritten as error:  # then the one before is the last
        say(str(error))
    found = store.load(lambda progress: None)
    if found is None:
        raise TrainingError(
            f"{spikes}, and there is no checkpoint to go back to; give "
            f"train.checkpoint.every_steps, {advice}"
        ) from spikes
    progress, state = found
    batches.restore(progress.step, state)
    batches.passed, batches.rewinds = read - progress.step, rewinds
    say(
        f"{spikes}: back to step {progress.step}, and the data of "
        f"{spikes.step - progress.step} steps are left out."
    )
    return replace(start, step=progress.step, tokens=progress.tokens)
