"""What tests of training share: objectives of tiny models, fixed batches, a few steps."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from culm.batch import Batch, Loss
from culm.model.transformer import Transformer
from culm.objective.objective import Objective, ObjectiveConfig
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Parallel
from culm.train.events import Event, Stepped
from culm.train.trainer import Trainer
from culm.train.update import Update


def refuse(setting: str, path: str) -> Transformer:
    """For objectives that load no further model."""
    raise AssertionError(f"{path} is loaded")


def build(config: ObjectiveConfig, model: Transformer, seed: int = 0) -> Objective:
    return config.build(model, refuse, seed)


def mean(loss: Loss, batch: Batch) -> Tensor:
    """What a step of this one batch minimises."""
    return loss.mean(batch.counts)


class Given:
    """Batches of a function of the step, or the same ones at each."""

    fingerprint = "given"

    def __init__(self, batches: Sequence[Batch] | Callable[[int], list[Batch]]) -> None:
        self.batches = batches

    def step(self, number: int) -> list[Batch]:
        return self.batches(number) if callable(self.batches) else list(self.batches)

    def state(self, steps: int) -> dict[str, Tensor]:
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        assert not state


class Recorder:
    """A listener that keeps the facts of each step."""

    def __init__(self) -> None:
        self.steps: list[Stepped] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.steps.append(event)

    def close(self) -> None: ...


def fit(
    objective: nn.Module, batches, steps: int = 1, optimizer=None, clip: float = 1e9
) -> list[Stepped]:
    """The facts of some steps; by plain gradient descent at a rate of 1 if nothing else is given,
    so that weights show gradients.
    """
    learned = [p for p in objective.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.SGD(learned, lr=1.0)
    recorder = Recorder()
    update = Update(Parallel(objective), optimizer, clip=clip)
    trainer = Trainer(update, Constant(), listener=recorder)
    given = batches if isinstance(batches, Given) or hasattr(batches, "step") else Given(batches)
    trainer.fit(given, steps)
    return recorder.steps
