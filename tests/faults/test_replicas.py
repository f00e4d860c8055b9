"""A copy of the weights that lost a bit, and a rank that is slow, are named."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from learning import build

from culm.exits import REPLICAS, RESUMES
from culm.objective.next_token import NextToken
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW
from culm.parallel.ranks import Ranks
from culm.train.replicas import ReplicaCheck, ReplicaError
from culm.train.straggler import StragglerConfig, Stragglers
from culm.train.trainer import Timing


@dataclass(frozen=True)
class Recorded(Ranks):
    """Ranks of which each call of `everyone` is answered with what all of them said in turn."""

    said: list[list[Any]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    count_of_all: int = 1

    @property
    def processes(self) -> int:
        return self.count_of_all

    def everyone(self, value: Any) -> list[Any]:
        number = len(self.asked)
        self.asked.append(1)
        if len(self.said) <= number:
            self.said.append([])
        self.said[number].append(value)
        return self.said[number]


def compare(*objectives: Objective) -> None:
    """Each as one rank; the last one hears what all have said."""
    said: list[list[Any]] = []
    for objective in objectives:
        optimizer = AdamW().build(objective)
        ranks = Recorded(said=said, count_of_all=len(objectives))
        check = ReplicaCheck(objective, optimizer, ranks, 1)
        digests = check._digests()  # also of those whose first exchange found nothing yet
        check.compare(7)
        if len(said) < 2:
            said.append([])
        if len(said[1]) < len(said[0]):
            said[1].append(digests)


def flipped(objective: Objective, name: str, bit: int) -> Objective:
    parameter = dict(objective.named_parameters())[name]
    with torch.no_grad():
        parameter.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)
    return objective


@pytest.mark.parametrize("bit", [0, 15, 30])
@pytest.mark.parametrize("name", ["model.embed.weight", "model.norm.weight"])
def test_one_flipped_bit_names_the_rank(name: str, bit: int) -> None:
    copies = [build(NextToken(), tiny.model()) for _ in range(4)]
    compare(*copies)
    flipped(copies[3], name, bit)
    with pytest.raises(
        ReplicaError, match=rf"step 7: the parameter {name} of rank 3 differs from that of the oth"
    ) as raised:
        compare(*copies)
    assert raised.value.exit_code == REPLICAS
    assert str(raised.value).endswith(f"; then {RESUMES}")


def test_of_two_ranks_nobody_knows_which_is_right() -> None:
    copies = [build(NextToken(), tiny.model()) for _ in range(2)]
    flipped(copies[1], "model.norm.weight", 3)
    with pytest.raises(ReplicaError, match="of ranks 0, 1 differs from each other"):
        compare(*copies)


def straggle(monkeypatch: pytest.MonkeyPatch, *means: float) -> Callable[[int], Any]:
    ranks = Recorded(count_of_all=len(means))
    monkeypatch.setattr(Recorded, "everyone", lambda self, value: list(means))
    watch = Stragglers(StragglerConfig(every_steps=3), build(NextToken(), tiny.model()), ranks)
    return lambda step: watch(Timing(step, 8, 0.1, 0.2))


def test_a_slow_rank_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    observe = straggle(monkeypatch, 0.1, 0.1, 0.5, 0.12)
    assert [observe(step) for step in (1, 2)] == [{}, {}]
    assert observe(3) == {"slowest_rank": 2.0, "slowest_rank_factor": 5.0}
    said = " ".join(capsys.readouterr().err.split())
    assert "Step 3: rank 2 is slow: 0.500 s a step on its own, the others 0.100 s" in said


def test_a_little_slower_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for means in ((0.1, 0.15), (0.001, 0.004)):  # less than twice; less than 5 ms
        observe = straggle(monkeypatch, *means)
        metrics = [observe(step) for step in (1, 2, 3)][-1]
        assert metrics["slowest_rank"] == 1
    assert "is slow" not in capsys.readouterr().err


def test_one_process_has_no_stragglers() -> None:
    watch = Stragglers(StragglerConfig(every_steps=1), build(NextToken(), tiny.model()), Ranks())
    assert watch(Timing(1, 8, 0.1, 0.2)) == {}
