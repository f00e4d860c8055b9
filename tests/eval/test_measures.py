"""Measures: how they are named, composed and divided over ranks, and what each finds."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from culm.batch import IGNORED, Batch, Reads
from culm.compose import compose_run
from culm.config import SettingError, parse
from culm.engine.request import Request
from culm.eval.answer import answer
from culm.eval.evaluation import Evaluation
from culm.eval.measure.held_out import HeldOut
from culm.eval.measure.measure import Subject
from culm.eval.measure.pairs import Pairs
from culm.eval.measure.samples import Samples
from culm.eval.measure.scores import Scores
from culm.eval.settings import EvalConfig
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import Transformer, TransformerConfig
from culm.parallel.ranks import Ranks
from culm.run.settings import LAYOUT
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes

TOKENIZER = Bytes(specials=True).build()
TEXTS = ["The fox met a crow.", "a", "東京 und noch mehr", "to be or not to be", "so on"]
TASKS = [
    {"kind": "arithmetic", "name": "sums"},
    {"kind": "letters", "name": "count", "operation": "count"},
]


def model(head: str = "vocabulary") -> Transformer:
    config = TransformerConfig(
        vocabulary=TOKENIZER.vocabulary, width=32, layers=1, context=64,
        attention=(GQA(heads=2),), head=head, tied=head == "vocabulary",
    )  # fmt: skip
    built = config.build(seed=10).eval()
    for weight in built.parameters():
        weight.data *= 6 if weight.ndim == 2 else 1
    return built


@dataclass(frozen=True)
class Given:
    """A batch for each text, or for each two of them."""

    rows: int = 1
    texts: list[str] = field(default_factory=lambda: TEXTS)
    gives: Reads = "documents"
    extra: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, targets: int) -> Iterator[Batch]:
        for at in range(0, len(self.texts), self.rows):
            ids = [TOKENIZER.encode(text) for text in self.texts[at : at + self.rows]]
            longest = max(map(len, ids))
            tokens = torch.full((len(ids), longest), 0)
            targets_ = torch.full((len(ids), longest), IGNORED)
            for row, one in enumerate(ids):
                tokens[row, : len(one)] = torch.tensor(one)
                targets_[row, : len(one) - 1] = torch.tensor(one[1:])
            lengths = torch.tensor([len(one) for one in ids])
            positions = torch.arange(longest).expand_as(tokens)
            part = slice(at, at + self.rows)
            extra = {name: torch.tensor(column[part]) for name, column in self.extra.items()}
            yield Batch(tokens, targets_, positions, lengths=lengths, extra=extra)


class FakeRanks:
    """Ranks that are threads of one process: each sum and gather waits for all of them."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier = count, threading.Barrier(count, timeout=60)
        self.values: list[Any] = [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(20)
        found = list(self.values)
        self.barrier.wait(20)
        return found

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        """The result of `work` on each rank."""
        outer = self

        class One(Ranks):
            def sum(self, values, device="cpu"):
                columns = zip(*outer.exchange(self.rank, values), strict=True)
                return [float(sum(column)) for column in columns]

            def gather(self, value):
                return outer.exchange(self.rank, value)

            everyone = gather

        results: list[Any] = [None] * self.count

        def go(rank: int) -> None:
            try:
                results[rank] = work(One(rank, self.count, rank == 0))
            except BaseException as error:
                results[rank] = error

        threads = [threading.Thread(target=go, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def settings(**measures: Any) -> EvalConfig:
    return parse(EvalConfig, {"measures": measures}, "eval")


EVERY = {
    "held_out": {"tokens": 1000},
    "scores": {"tasks": TASKS, "questions": 5, "max_tokens": 6},
    "samples": {"texts": ["The ", "a", ""], "temperatures": [0.7, 1.0], "max_tokens": 5},
}


@pytest.mark.parametrize("count", [2, 3, 16])  # 16: some have nothing to do
def test_results_do_not_depend_on_the_number_of_ranks(count: int) -> None:
    subject = Subject(model(), TOKENIZER, Given, seed=3)
    whole = Evaluation(settings(**EVERY), subject).run(final=True)
    assert list(whole) == ["loss", "bits_per_byte", "scores", "samples"]
    assert [one["items"] for one in whole["scores"].values()] == [5, 5, 10]
    shared = subject.model

    def work(ranks: Ranks) -> dict[str, Any]:
        own = Subject(replicas[ranks.rank], TOKENIZER, Given, ranks, seed=3)
        return Evaluation(settings(**EVERY), own).run(final=True)

    replicas = [model() for _ in range(count)]
    for replica in replicas:
        replica.load_state_dict(shared.state_dict())
    for found in FakeRanks(count).run(work):
        assert list(found) == list(whole)
        for name in ("loss", "bits_per_byte"):
            assert found[name] == pytest.approx(whole[name], rel=1e-12)
        assert found["scores"] == whole["scores"]
        assert found["samples"] == whole["samples"]


def test_ranks_divide_the_work() -> None:
    """Each batch is scored, and each question answered, by one rank."""
    seen: list[int] = []

    def work(ranks: Ranks) -> list[float]:
        subject = Subject(model(), TOKENIZER, Given, ranks)
        seen.extend(subject.share(range(7)))
        return subject.join([float(item * item) for item in subject.share(range(7))], 7)

    assert FakeRanks(3).run(work) == [[0, 1, 4, 9, 16, 25, 36]] * 3
    assert sorted(seen) == list(range(7))


def test_nothing_to_score_is_an_error_on_every_rank() -> None:
    def work(ranks: Ranks) -> None:
        HeldOut().measure(Subject(model(), TOKENIZER, lambda: Given(texts=["a"]), ranks))

    with pytest.raises(ValueError, match=r"eval\.measures\.held_out: .* no scorable tokens"):
        work(Ranks())
    for error in FakeRanks(2).run(work):
        assert isinstance(error, ValueError)
        assert "no scorable tokens" in str(error)


def test_answers_are_in_the_order_of_the_requests() -> None:
    built = model()
    requests = [Request(tuple(TOKENIZER.encode(text)), 5) for text in TEXTS]
    requests = [replace(one, sampling=replace(one.sampling, temperature=0.0)) for one in requests]
    alone = [answer(built, TOKENIZER, [request])[0] for request in requests]
    for slots in (1, 2, 64):
        assert [a.text for a in answer(built, TOKENIZER, requests, slots)] == [
            a.text for a in alone
        ]
    assert len({one.text for one in alone}) > 1
    assert alone[0].text == TOKENIZER.decode(alone[0].completion.tokens)
    assert answer(built, TOKENIZER, []) == []


def test_samples_are_continuations_by_the_language_model() -> None:
    subject = Subject(model(), TOKENIZER, seed=4)
    measure = Samples(texts=("The ", "x" * 62), temperatures=(0.5, 1.0), max_tokens=6)
    found = measure.measure(subject)["samples"]
    assert [(one["prompt"], one["temperature"]) for one in found] == [
        ("The ", 0.5), ("The ", 1.0), ("x" * 62, 0.5), ("x" * 62, 1.0),
    ]  # fmt: skip
    spoken = LanguageModel(subject.model, TOKENIZER)
    assert found[1]["text"] == "".join(spoken.stream("The ", 6, temperature=1.0, seed=4))
    assert found[0]["text"] != found[1]["text"]
    short = "".join(
        spoken.stream("x" * 62, 64 - len(spoken.prompt_ids("x" * 62)), temperature=0.5, seed=4)
    )
    assert found[2]["text"] == short  # as far as the context goes


def test_samples_wait_for_the_last_step() -> None:
    evaluation = Evaluation(settings(**EVERY), Subject(model(), TOKENIZER, Given))
    assert list(evaluation.run()) == ["loss", "bits_per_byte", "scores"]
    assert "samples" in evaluation.run(final=True)
    during = {**EVERY, "samples": {**EVERY["samples"], "while_training": True}}
    evaluation = Evaluation(settings(**during), Subject(model(), TOKENIZER, Given))
    assert "samples" in evaluation.run()


def test_a_name_of_its_own_is_put_in_front_of_the_results() -> None:
    chosen = settings(
        held_out={"tokens": 10}, books={"kind": "held_out"}, words={"kind": "samples"}
    )
    found = Evaluation(chosen, Subject(model(), TOKENIZER, Given)).run(final=True)
    assert list(found) == ["loss", "bits_per_byte", "books.loss", "books.bits_per_byte"]


def test_without_held_out_text_or_tasks_nothing_is_measured() -> None:
    chosen = settings(held_out={}, scores={}, samples={}, pairs={})
    assert Evaluation(chosen, Subject(model(), TOKENIZER)).run(final=True) == {}


def rewards_of(built: Transformer, texts: list[str]) -> list[float]:
    ids = [torch.tensor([TOKENIZER.encode(text)]) for text in texts]
    return [built.scores(one, Context.plain(one))[0, -1].item() for one in ids]


@pytest.mark.parametrize("count", [1, 2])
def test_rankings_count_every_pair_of_other_scores(count: int) -> None:
    built, texts = model("scalar"), ["abc", "abd", "a", "zz", "b", "c"]
    extra = {"score": [2.0, 1, 1, 0, 1, 0], "place": [0.0, 1, 2, 3, 0, 1]}
    one = rewards_of(built, texts)
    better = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (4, 5)]
    gaps = [one[a] - one[b] for a, b in better]
    whole = Given(6, texts, "rankings", extra)

    def work(ranks: Ranks) -> dict[str, Any]:
        return Pairs().measure(Subject(built, TOKENIZER, lambda: whole, ranks))

    for found in FakeRanks(count).run(work):
        assert found["accuracy"]["value"] == pytest.approx(sum(gap > 0 for gap in gaps) / 6)
        assert found["accuracy"]["items"] == 6
        assert found["margin"] == pytest.approx(sum(gaps) / 6, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_are_compared_with_rewards(count: int) -> None:
    built, texts = model("scalar"), ["abc", "abd", "a", "zz"]
    rows = Given(2, texts, "labels", {"label": [1.0, 0, 2.5, 1]})
    both = torch.tensor([rewards_of(built, texts), [1.0, 0, 2.5, 1]])

    def work(ranks: Ranks) -> dict[str, Any]:
        return Pairs().measure(Subject(built, TOKENIZER, lambda: rows, ranks))

    for found in FakeRanks(count).run(work):
        assert found["error"] == pytest.approx((both[0] - both[1]).square().mean().item(), rel=1e-5)
        assert found["correlation"] == pytest.approx(both.corrcoef()[0, 1].item(), abs=1e-4)
    constant = Given(2, texts, "labels", {"label": [1.0] * 4})
    found = Pairs().measure(Subject(built, TOKENIZER, lambda: constant))
    assert list(found) == ["error"]


def test_steps_count_labels_on_the_right_side() -> None:
    built = model("scalar")
    ids = torch.tensor([TOKENIZER.encode("abcdef")])
    scores = built.scores(ids, Context.plain(ids))[0]
    labels = [math.nan, 1.0, math.nan, 0.0, 0.5, 0.0]
    rows = Given(1, ["abcdef"], "steps", {"label": [labels]})  # type: ignore[list-item]
    right = [
        (score.item() > 0) == (label >= 0.5)
        for score, label in zip(scores, labels, strict=True)
        if not math.isnan(label)
    ]
    found = Pairs().measure(Subject(built, TOKENIZER, lambda: rows))
    assert found["accuracy"]["value"] == pytest.approx(sum(right) / 4)
    assert found["accuracy"]["items"] == 4


@pytest.mark.parametrize("count", [1, 2])
def test_pairs_count_the_preferred_answers(count: int) -> None:
    """Rows are chosen and rejected in turn; the reward is the score of the last token."""
    built, rows = model("scalar"), Given(2, ["abc", "abd", "a", "zz", "same", "same"], "pairs")
    rewards = rewards_of(built, rows.texts)
    gaps = [a - b for a, b in zip(rewards[::2], rewards[1::2], strict=True)]
    assert gaps[2] == 0
    assert any(gap > 0 for gap in gaps) or any(gap < 0 for gap in gaps)

    def work(ranks: Ranks) -> dict[str, Any]:
        return Pairs().measure(Subject(built, TOKENIZER, lambda: rows, ranks))

    for found in FakeRanks(count).run(work):
        assert found["accuracy"]["value"] == pytest.approx(sum(gap > 0 for gap in gaps) / 3)
        assert found["accuracy"]["items"] == 3
        assert found["margin"] == pytest.approx(sum(gaps) / 3, abs=1e-5)
    assert HeldOut().measure(Subject(built, TOKENIZER, lambda: rows)) == {}
    assert Pairs().measure(Subject(model(), TOKENIZER, lambda: rows)) == {}


# -- settings -----------------------------------------------------------------------------------


def test_the_name_stands_for_the_kind() -> None:
    chosen = settings(held_out={"tokens": 7}, short={"kind": "scores", "max_tokens": 3})
    assert chosen.measures == {"held_out": HeldOut(tokens=7), "short": Scores(max_tokens=3)}
    assert parse(EvalConfig, chosen.model_dump(mode="json")) == chosen
    assert settings(text="held_out").measures == {"text": HeldOut()}
    assert EvalConfig().measures == {"held_out": HeldOut()}
    assert chosen.first(Scores).max_tokens == 3
    with pytest.raises(SettingError, match=r"eval\.measures: none is of the kind samples"):
        chosen.first(Samples)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"held_uot": {}}, r"eval\.measures\.held_uot\.kind: 'held_uot' is not one of 'held_out'"),
        ({"held_out": {"token": 3}}, r"measures\.held_out\.token: .*did you mean 'tokens'"),
        ({"scores": {"questions": 0}}, r"measures\.scores\.questions: .*greater than 0"),
        ({"quick": {"kind": "held_out", "tokens": 0}}, r"eval\.measures\.quick\.tokens: "),
    ],
)
def test_errors_name_the_measure(measures: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings(**measures)


def test_files_and_the_command_line_merge(tmp_path: Path) -> None:
    run = {"base": "sft", "eval": {"base": "tasks", "measures": {"scores": {"questions": 7}}}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))

    def measures(*more: str) -> Any:
        values = compose_run(path, ["start=x", *more], LAYOUT).values["eval"]
        return parse(EvalConfig, values, "eval").measures

    assert list(measures()) == ["held_out", "scores"]
    assert measures()["scores"].questions == 7
    assert len(measures()["scores"].tasks) == 8
    changed = measures(
        "eval.measures.scores.questions=200", "eval.measures.samples.texts=[a]",
        "eval.measures.held_out=null",
    )  # fmt: skip
    assert list(changed) == ["scores", "samples"]
    assert changed["scores"].questions == 200
    assert len(changed["scores"].tasks) == 8
    assert changed["samples"] == Samples(texts=("a",))
