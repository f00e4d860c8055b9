"""A measure that fails while training costs its results and no more, on all ranks alike."""

from typing import Any, Literal

import pytest
from test_measures import TOKENIZER, FakeRanks, Given, model

from culm.config import SettingError
from culm.eval.evaluation import Evaluation
from culm.eval.measure.held_out import HeldOut
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.eval.settings import EvalConfig
from culm.parallel.ranks import Ranks


class Failing(MeasureConfig):
    """On some ranks, after so many sums."""

    kind: Literal["failing"] = "failing"  # type: ignore[assignment]
    ranks: tuple[int, ...] = (0,)
    sums: int = 0

    def measure(self, subject: Subject) -> dict[str, Any]:
        for number in range(4):
            if number == self.sums and subject.ranks.rank in self.ranks:
                raise ConnectionError(f"rank {subject.ranks.rank}: the server is gone")
            subject.sum([1.0])
        return {"sums": subject.ranks.gather(4)}


def evaluation(subject: Subject, failing: Failing) -> Evaluation:
    measures = {"first": HeldOut(tokens=200), "failing": failing, "held_out": HeldOut(tokens=100)}
    settings = EvalConfig(measures={"held_out": HeldOut()})
    return Evaluation(settings.model_copy(update={"measures": measures}), subject)


def test_the_other_measures_are_taken(capsys) -> None:
    subject = Subject(model(), TOKENIZER, Given)
    found = evaluation(subject, Failing()).attempt()
    assert list(found) == ["first.loss", "first.bits_per_byte", "loss", "bits_per_byte", "failed"]
    assert found["failed"] == {"failing": "ConnectionError: rank 0: the server is gone"}
    assert "measure failing failed, and training continues" in capsys.readouterr().err
    with pytest.raises(ConnectionError):
        evaluation(subject, Failing()).run()


@pytest.mark.parametrize("ranks", [(1,), (0, 2), (0, 1, 2), ()])
@pytest.mark.parametrize("sums", [0, 2])
def test_all_ranks_give_up_what_one_cannot_do(ranks: tuple[int, ...], sums: int) -> None:
    replicas = [model() for _ in range(3)]
    for replica in replicas:
        replica.load_state_dict(replicas[0].state_dict())

    def work(own: Ranks) -> dict[str, Any]:
        subject = Subject(replicas[own.rank], TOKENIZER, Given, own)
        return evaluation(subject, Failing(ranks=ranks, sums=sums)).attempt()

    first, *others = FakeRanks(3).run(work)
    assert isinstance(first, dict), first
    assert ("failed" in first) == bool(ranks)
    assert "loss" in first
    for other in others:
        assert other.keys() == first.keys()
        assert other["loss"] == first["loss"]
    if not ranks:
        assert first["sums"] == [4, 4, 4]


def test_a_setting_that_cannot_be_measured_is_still_refused_before_the_first_step() -> None:
    class Impossible(Failing):
        def check(self, subject: Subject) -> None:
            raise ValueError("url: nobody answers")

    with pytest.raises(SettingError, match=r"eval\.measures\.failing: url: nobody answers"):
        evaluation(Subject(model(), TOKENIZER, Given), Impossible()).check()
