"""The evaluation of a run: its measures on the model that is trained."""

from __future__ import annotations

from culm.eval.evaluation import Evaluation
from culm.eval.measure.measure import Subject
from culm.run.assemble import Assembly, held_out


def evaluation_of(run: Assembly) -> Evaluation:
    """Measures the model of a run, each rank a share."""
    settings = run.config.eval
    subject = Subject(run.model, run.tokenizer, lambda: held_out(run), run.ranks, settings.seed)
    return Evaluation(settings, subject)
