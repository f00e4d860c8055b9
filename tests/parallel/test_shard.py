"""What an objective owns outside a Transformer, and quantised weights under an adapter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from culm.config import SettingError
from culm.parallel.parallelize import shard

SCRIPT = """
import sys, torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
sys.path[:0] = {paths!r}
from culm.batch import Batch, Loss, Term, counts_of
from culm.model.attention.gqa import GQA
from culm.model.trunk import TrunkConfig
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.launch import process_group
from culm.parallel.parallelize import ParallelConfig, parallelize
from culm.parallel.ranks import Ranks
from culm.dtensor import full_tensor
from culm.train.trainer import Trainer
from culm.train.update import Update
from learning import Given
from tiny import model

torch.set_num_threads(1)


class Wrapped(nn.Module):  # a model and a head in one module
    def __init__(self):
        super().__init__()
        self.inside, self.head = model(seed=2), nn.Linear(16, 16)

    def forward(self, tokens, context):
        return self.head(self.inside.hidden(tokens, context))


class WithHead(Objective):
    def __init__(self):
        super().__init__(model())
        self.trunk = TrunkConfig(width=16, layers=2, context=12, attention=(GQA(heads=2),)).build(1)
        torch.manual_seed(0)
        self.wrapped = Wrapped()
        self.outside = nn.Linear(16, 1)
        nn.init.constant_(self.outside.weight, 0.1)
        nn.init.zeros_(self.outside.bias)

    def loss(self, batch, context):
        states = self.trunk(self.model.hidden(batch.tokens, context), context)
        states = states + self.wrapped(batch.tokens, context.unrecorded())
        errors = (self.outside(states)[..., 0] - 1).square()
        return Loss({{"error": Term(errors.sum(), "tokens")}})


def batch(rank, count):
    tokens = torch.randint(31, (8, 12), generator=torch.Generator().manual_seed(0))
    tokens = tokens[rank * 8 // count : (rank + 1) * 8 // count]
    return Batch(tokens, tokens, torch.arange(12).expand_as(tokens), counts=counts_of(tokens))


def train(ranks, replicas):
    objective = WithHead()
    parallel = parallelize(
        objective, ranks, ParallelConfig(data=replicas), activation_checkpointing="full"
    )
    if replicas == "fsdp":
        assert all(isinstance(block, FSDPModule) for block in objective.trunk.blocks)
    optimizer = AdamW(rate=0.01).build(objective)
    given = batch(ranks.rank, ranks.count)
    losses = []
    update = Update(parallel, optimizer)
    trainer = Trainer(update, Constant(), listener=lambda e: losses.append(e.loss))
    trainer.fit(Given([given]), 4)
    rest = [p for name, p in objective.named_parameters() if not name.startswith("outside")]
    head = full_tensor(objective.outside.weight.detach())
    return losses, head, [full_tensor(p.detach()) for p in rest]


with process_group("cpu") as ranks:
    whole = train(Ranks(), "ddp")
    for replicas in ("ddp", "fsdp"):
        found = train(ranks, replicas)
        assert max(abs(a - b) for a, b in zip(found[0], whole[0])) < 1e-5, (found[0], whole[0])
        torch.testing.assert_close(found[1], whole[1], atol=1e-5, rtol=1e-4)
        for a, b in zip(found[2], whole[2]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
"""


@pytest.mark.slow
def test_heads_outside_a_model_are_synchronised(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    script = tmp_path / "script.py"
    paths = [str(tests), str(tests / "objective"), str(tests.parent)]
    script.write_text(SCRIPT.format(paths=paths))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_parameter_that_nothing_shards_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(SettingError, match="put the parameter scale into a module"):
        shard(Bare(), None)  # type: ignore[arg-type]
