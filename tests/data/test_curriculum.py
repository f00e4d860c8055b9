"""Easy examples first: what a step may read, and that it reads nothing else."""

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_prepare import Records

from culm.config import SettingError, parse
from culm.data.curriculum import Curriculum
from culm.data.difficulty import Length, Rarity, RecordField
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.loader import Loader
from culm.data.order import Graded, Grading
from culm.data.pack import ROWS, cut, graded_fit
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig

STRATEGIES = ("competence", "baby_steps", "one_pass")


def curriculum(**settings: object) -> Curriculum:
    return parse(Curriculum, settings)


@pytest.fixture(scope="module")
def stories(tokenizer, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("corpus") / "p"
    records = [{"text": f"story {n}: the fox jumps. " * (n % 9 + 1)} for n in range(150)]
    prepare(Records(records), DocumentFormat(), tokenizer, folder)
    return Prepared.open(folder)


def graded(
    corpus: Prepared, rows: int = 4, micro: int = 2, seed: int = 3, **more: object
) -> Loader:
    settings = curriculum(**{"steps": 40, **more.pop("curriculum", {})})  # type: ignore[dict-item]
    grading = Grading(settings, settings.difficulty.measure)
    return Loader(corpus, 64, rows, micro, seed, grading=grading, **more)


def order_of(loader: Loader) -> Graded:
    assert isinstance(loader.order, Graded)
    return loader.order


def test_competence_by_the_formula() -> None:
    """arXiv 1903.09848; the number is sqrt(0.25 * 0.99 + 0.01)."""
    root = curriculum(steps=100, strategy={"kind": "competence", "initial": 0.1})
    assert root.part(25)[1] == pytest.approx(0.50744, abs=5e-6)
    linear = curriculum(steps=100, strategy={"kind": "competence", "initial": 0.1, "power": 1})
    assert linear.part(25)[1] == pytest.approx(0.1 + 0.9 * 0.25)
    for one in (root, linear):
        ends = [one.part(step)[1] for step in range(101)]
        assert ends[0] == pytest.approx(0.1)
        assert ends[100] == 1
        assert ends == sorted(ends)
        assert one.strategy.part(100, 100)[1] == pytest.approx(1)


def test_buckets() -> None:
    baby = curriculum(steps=10, strategy={"kind": "baby_steps", "buckets": 4})
    assert [baby.part(step)[1] for step in (0, 2, 3, 5, 8, 10)] == [0.25, 0.25, 0.5, 0.75, 1, 1]
    assert {baby.part(step)[0] for step in range(12)} == {0}
    once = curriculum(steps=10, strategy={"kind": "one_pass", "buckets": 4})
    assert [once.part(step) for step in (0, 3, 9)] == [(0, 0.25), (0.25, 0.5), (0.75, 1)]
    assert once.part(10) == (0, 1)
    parts = [once.cut(step, 10) for step in (0, 3, 5, 8)]
    assert parts[0][0] == 0
    assert parts[-1][1] == 10
    for (_, end), (start, _) in pairwise(parts):
        assert end == start


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_step_may_always_read_something(kind: str, rows: int) -> None:
    one = curriculum(steps=20, strategy=kind)
    for step in range(25):
        start, end = one.cut(step, rows)
        assert 0 <= start < end <= rows


@pytest.mark.parametrize("hardest_first", [False, True])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_row_that_is_read_satisfies_the_cut(
    kind: str, hardest_first: bool, stories: Prepared
) -> None:
    loader = graded(stories, curriculum={"strategy": kind, "hardest_first": hardest_first})
    order = order_of(loader)
    assert list(order.difficulty) == sorted(order.difficulty, reverse=hardest_first)
    hard = dict(zip(order.rows.tolist(), order.difficulty.tolist(), strict=True))
    for step in range(40):
        read = order.of_step(step, lambda step: 4 * step)
        start, end = order.curriculum.cut(step, loader.rows)
        bounds = sorted((order.difficulty[start], order.difficulty[end - 1]))
        assert set(read) <= set(order.allowed(step).tolist())
        assert all(bounds[0] <= hard[row] <= bounds[1] for row in read)
        assert len(set(read)) == min(4, end - start)
        [batch, *_] = loader.step(step)
        assert batch.metrics == {"competence": order.curriculum.part(step)[1]}
    assert loader.step(40)[0].metrics == {"competence": 1.0}


def test_all_allowed_rows_are_equally_likely(stories: Prepared) -> None:
    """Chi-squared of 4,000 rows over a bucket that stays the same for 1,000 steps."""
    settings = {"steps": 2000, "strategy": {"kind": "baby_steps", "buckets": 2}}
    order = order_of(graded(stories, curriculum=settings))
    counts = Counter(
        row for step in range(1000) for row in order.of_step(step, lambda step: 4 * step)
    )
    allowed = order.allowed(0)
    assert counts.keys() == set(allowed.tolist())
    expected = 4000 / len(allowed)
    squared = sum((counts[row] - expected) ** 2 / expected for row in allowed.tolist())
    assert squared < len(allowed) + 4 * math.sqrt(2 * len(allowed))


def test_after_its_end_an_epoch_shows_every_row_once(stories: Prepared) -> None:
    loader = graded(stories, rows=1, micro=1, curriculum={"steps": 7})
    order = order_of(loader)
    for epoch in range(2):
        first = 7 + epoch * loader.rows
        steps = range(first, first + loader.rows)
        read = [row for step in steps for row in order.of_step(step, lambda step: step)]
        assert sorted(read) == sorted(order.rows.tolist())


def test_ranks_and_micro_batches_only_divide_a_step(stories: Prepared) -> None:
    whole = graded(stories, rows=12, micro=12)
    for number in (41, 0, 39, 7, 55):
        [batch] = whole.step(number)
        for ranks, micro in ((1, 5), (2, 6), (3, 1), (4, 2)):
            shares = [
                graded(stories, rows=12, micro=micro, rank=rank, ranks=ranks)
                for rank in range(ranks)
            ]
            rows = [r.tolist() for s in shares for b in s.step(number) for r in b.tokens]
            assert rows == batch.tokens.tolist()
            assert {share.fingerprint for share in shares} == {whole.fingerprint}


def test_the_fingerprint_is_of_the_curriculum(stories: Prepared) -> None:
    changes: list[dict] = [
        {}, {"steps": 41}, {"strategy": "one_pass"}, {"hardest_first": True},
        {"difficulty": "rarity"},
    ]  # fmt: skip
    found = {graded(stories, curriculum=change).fingerprint for change in changes}
    assert len(found | {Loader(stories, 64, 4, 2, 3).fingerprint}) == len(changes) + 1


def test_rows_hold_examples_of_about_the_same_length(tokenizer, tmp_path: Path) -> None:
    """Best fit alone fills up the rows of long examples with short ones."""
    records = [{"prompt": f"q{n}", "completion": "ab " * (n % 40 + 1)} for n in range(1500)]
    prepare(Records(records), ChatFormat(), tokenizer, tmp_path / "p", held_out=0)
    corpus = Prepared.open(tmp_path / "p")
    loader = graded(corpus, curriculum={"strategy": {"kind": "competence", "initial": 0.1}})
    lengths = np.sort(np.diff(corpus.offsets))
    share = lengths.cumsum() / lengths.sum()  # rows hold equally many tokens, not examples
    allowed = lengths[np.searchsorted(share, loader.order.metrics(2)["competence"] + 0.02)]
    longest = [
        int((batch.documents[row] == document).sum())
        for step in range(3)
        for batch in loader.step(step)
        for row in range(len(batch.tokens))
        for document in range(int(batch.documents[row, : batch.lengths[row]].max()) + 1)
    ]
    assert max(longest) <= allowed < lengths[-1]
    plain = Loader(corpus, 64, 4, 2, 3)
    assert loader.efficiency > 0.8 * plain.efficiency  # equal lengths leave gaps
    assert loader.targets == plain.targets  # no example is lost


def test_long_documents_are_cut_and_none_of_their_tokens_is_lost(stories: Prepared) -> None:
    loader, plain = graded(stories), Loader(stories, 64, 4, 2, 3, packing="best_fit")
    assert loader.targets == plain.targets
    assert loader.truncated == 0


def test_parts_by_difficulty_hold_equally_many_tokens() -> None:
    """By length the easy examples are short: parts of equally many would leave more gaps there."""
    lengths = np.repeat([1, 4, 60], [6400, 1600, 200])
    packed = graded_fit(lengths, lengths.astype(float), 64)
    assert sorted(index for row in packed for index in row) == list(range(len(lengths)))
    short = [row for row in packed if lengths[row].max() == 1]
    gaps = sum(len(row) < 64 for row in short)
    assert gaps <= len(short) / ROWS
    assert len(short) >= 6400 / 64


def test_what_equal_difficulty_lets_in_first_is_not_first_afterwards(stories: Prepared) -> None:
    same = Grading(curriculum(steps=9), lambda _, examples: np.zeros(len(examples.starts)))
    order = order_of(Loader(stories, 64, 1, 1, 3, grading=same))
    steps = range(9, 9 + len(order.rows))
    after = [row for step in steps for row in order.of_step(step, lambda step: step)]
    assert order.rows.tolist() != after
    assert sorted(order.rows.tolist()) == sorted(after)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_sorted_is_refused(value: float, stories: Prepared) -> None:
    lost = Grading(curriculum(steps=9), lambda _, examples: np.full(len(examples.starts), value))
    with pytest.raises(SettingError, match=r"data\.curriculum\.difficulty: length gives no finite"):
        Loader(stories, 64, 1, 1, 3, grading=lost)


def test_rarity_is_the_sum_of_negative_log_frequencies(stories: Prepared) -> None:
    examples = cut(stories.offsets, 64, "split")
    tokens = np.concatenate(list(stories.shards()))
    counts = Counter(tokens.tolist())
    found = Rarity().measure(stories, examples)
    for number in (0, 5, len(found) - 1):
        span = tokens[examples.starts[number] : examples.ends[number]].tolist()
        assert found[number] == pytest.approx(-sum(math.log(counts[t] / len(tokens)) for t in span))
    assert Length().measure(stories, examples).max() == 64


def test_a_pair_is_as_hard_as_its_answers_together(tokenizer, tmp_path: Path) -> None:
    records = [{"prompt": f"q{n}", "chosen": "a" * n, "rejected": "b" * 9} for n in range(1, 30)]
    prepare(Records(records), PairFormat(), tokenizer, tmp_path / "p", held_out=0)
    corpus = Prepared.open(tmp_path / "p")
    order = order_of(graded(corpus))
    assert len(order.rows) == 29
    lengths = np.diff(corpus.offsets).reshape(-1, 2).mean(1)
    np.testing.assert_allclose(order.difficulty, lengths[order.rows])
    assert list(order.difficulty) == sorted(lengths)


def leveled(folder: Path, tokenizer, records: list[dict], **options) -> Prepared:
    prepare(
        Records(records), ChatFormat(), tokenizer, folder, held_out=0, difficulty="level", **options
    )
    return Prepared.open(folder)


def test_a_field_of_the_record_is_the_difficulty(tokenizer, tmp_path: Path) -> None:
    records = [
        {"prompt": f"q{n}", "completion": f"answer {n % 3}", "level": n % 3} for n in range(90)
    ]
    corpus = leveled(tmp_path / "p", tokenizer, records)
    assert not corpus.manifest.columns  # nothing for the objective, so rows are packed as ever
    by = {"kind": "field", "name": "level"}
    loader = graded(corpus, curriculum={"difficulty": by, "strategy": "one_pass"})
    [batch, *_] = loader.step(0)
    assert batch.documents is not None
    assert not batch.extra
    said = tokenizer.decode(batch.tokens.flatten().tolist())
    assert "answer 0" in said
    assert "answer 2" not in said
    with pytest.raises(SettingError, match=r"data\.curriculum\.difficulty\.name: .*with 'level'"):
        graded(corpus, curriculum={"difficulty": {"kind": "field", "name": "grade"}})


def test_the_same_text_of_another_level_is_a_duplicate(tokenizer, tmp_path: Path) -> None:
    records = [{"prompt": "q", "completion": "a", "level": n} for n in range(3)]
    records.append({"prompt": "other", "completion": "a", "level": 1})
    assert leveled(tmp_path / "p", tokenizer, records).manifest.dropped == 2


@pytest.mark.parametrize("value", [None, "hard", float("nan"), [1]])
def test_a_record_without_its_level_is_refused_or_counted(
    value: object, tokenizer, tmp_path: Path
) -> None:
    records = [{"prompt": "q", "completion": "a", "level": value}]
    records += [{"prompt": f"q{n}", "completion": "a", "level": n} for n in range(3)]
    with pytest.raises(SettingError, match="no number in 'level'"):
        leveled(tmp_path / "p", tokenizer, records)
    corpus = leveled(tmp_path / "q", tokenizer, records, invalid="skip")
    assert corpus.manifest.documents == 3
    assert sum(corpus.manifest.notes.values()) == 1


def test_a_corpus_without_the_field_is_named(stories: Prepared) -> None:
    with pytest.raises(SettingError, match="prepared without a field for the difficulty"):
        RecordField(name="level").measure(stories, cut(stories.offsets, 64, "split"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": "wrapped", "curriculum": {"steps": 3}}, r"data\.packing: wrapped rows have"),
        (
            {"curriculum": {"steps": 3, "strategy": {"kind": "one_pass", "buckets": 4}}},
            r"data\.curriculum\.strategy\.buckets: 4 buckets need a step each, and steps=3",
        ),
        (
            {"curriculum": {"steps": 3, "strategy": {"kind": "competence", "initial": 0}}},
            r"data\.curriculum\.strategy\.initial: it should be greater than 0",
        ),
        ({"curriculum": {}}, r"data\.curriculum\.steps: this setting is needed"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse(DataConfig, {"path": "x.jsonl", **settings}, "data")


def test_tasks_have_no_fields() -> None:
    task = {"kind": "letters", "name": "count", "operation": "count", "shortest": 2, "longest": 3}
    by = {"kind": "field", "name": "level"}
    with pytest.raises(SettingError, match="questions of tasks have no fields"):
        parse(DataConfig, {"tasks": [task], "curriculum": {"steps": 3, "difficulty": by}}, "data")


def test_a_ranking_is_as_hard_as_its_answers_on_average(tokenizer, tmp_path: Path) -> None:
    """Of two to four answers, which stay together in a batch."""
    records = [
        {
            "prompt": f"q{n}",
            "responses": ["a" * (n % 7 + k + 1) for k in range(2 + n % 3)],
            "scores": [float(k) for k in range(2 + n % 3)],
        }
        for n in range(30)
    ]
    prepare(Records(records), RankingFormat(), tokenizer, tmp_path / "p", held_out=0)
    corpus = Prepared.open(tmp_path / "p")
    loader = graded(corpus, curriculum={"steps": 8, "strategy": "one_pass"})
    order = order_of(loader)
    first = np.append(np.flatnonzero(corpus.column("place") == 0), corpus.facts.documents)
    lengths = np.diff(corpus.offsets)
    means = np.array([lengths[start:end].mean() for start, end in pairwise(first)])
    assert len(order.rows) == 30
    np.testing.assert_allclose(order.difficulty, means[order.rows])
    assert list(order.difficulty) == sorted(means)
    for step in range(10):
        start, end = order.curriculum.cut(step, 30)
        for batch in loader.step(step):
            begins = np.flatnonzero(batch.extra["place"].numpy() == 0)
            assert len(begins) == batch.counts["rankings"] == 2
            for one in np.split(batch.lengths.numpy(), begins[1:]):
                assert order.difficulty[start] <= one.mean() <= order.difficulty[end - 1]


@pytest.mark.parametrize("form", ["pair", "ranking", "steps", "label"])
def test_a_field_next_to_columns_of_the_objective(form: str, tokenizer, tmp_path: Path) -> None:
    """One number for a record, whether its columns have one for each answer or for each token."""
    formats = {
        "pair": PairFormat(margin="by"), "ranking": RankingFormat(), "steps": StepsFormat(),
        "label": LabelFormat(),
    }  # fmt: skip
    answers = {"chosen": "yes", "rejected": "no", "by": 0.5, "label": True, "completion": "yes"}
    records = [
        {
            "prompt": f"q{n}", **answers, "level": n % 3, "labels": [True, False],
            **({"completions": ["one", f"two {n}"]} if form == "steps" else {}),
            **({"responses": ["a", "b", "c"][: 2 + n % 2], "scores": [2, 1, 0][: 2 + n % 2]}),
        }
        for n in range(30)
    ]  # fmt: skip
    prepare(
        Records(records), formats[form], tokenizer, tmp_path / "p", held_out=0.3, difficulty="level"
    )
    plain = prepare(Records(records), formats[form], tokenizer, tmp_path / "q", held_out=0.3)
    corpus = Prepared.open(tmp_path / "p")
    assert corpus.manifest.columns == formats[form].columns
    for split in ("train", "held_out"):  # which documents are held out does not follow the field
        kept, without = (Prepared.open(tmp_path / name, split) for name in "pq")
        assert kept.facts.tokens == plain.splits[split].tokens
        assert all(map(np.array_equal, kept.shards(), without.shards()))
    levels = {"kind": "field", "name": "level"}
    strategy = {"kind": "one_pass", "buckets": 3}
    loader = graded(corpus, curriculum={"steps": 3, "difficulty": levels, "strategy": strategy})
    order = order_of(loader)
    assert Counter(order.difficulty.tolist()).keys() == {0, 1, 2}
    for step in range(3):
        start, end = order.curriculum.cut(step, loader.rows)
        allowed = set(order.difficulty[start:end].tolist())
        for batch in loader.step(step):
            assert set(formats[form].columns) <= batch.extra.keys()
            asked = re.findall(r"q(\d+)", tokenizer.decode(batch.tokens.flatten().tolist()))
            assert len(asked) == len(batch.tokens)
            assert {int(number) % 3 for number in asked} <= allowed
            if form == "steps":
                labels = batch.extra["label"]
                assert labels[~labels.isnan()].tolist() == [1.0, 0.0] * len(batch.tokens)
