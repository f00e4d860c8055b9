"""The one loop: what it refuses."""

from dataclasses import replace

import pytest
import tiny
import torch
from learning import Given, build

from culm.batch import Loss, Term
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Parallel
from culm.train.trainer import Trainer
from culm.train.update import Update


def test_one_name_is_not_reported_for_two_things() -> None:
    total = Term(torch.ones(()), "tokens")
    with pytest.raises(ValueError, match="nll: a term and a metric"):
        Loss({"nll": total}, {"nll": total})
    objective = build(NextToken(), tiny.model())
    trainer = Trainer(Update(Parallel(objective), AdamW().build(objective)), Constant())
    batch = replace(tiny.rows(), metrics={"nll": 1.0})
    with pytest.raises(ValueError, match="nll: a metric of the batch and one of the loss"):
        trainer.fit(Given([batch]), 1)
