"""Several corpora in one run: the same global batches however they are divided."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import Records

from culm.config import SettingError, parse
from culm.data.curriculum import Curriculum
from culm.data.difficulty import Length
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.loader import Loader
from culm.data.mixture import Mixture
from culm.data.order import Grading
from culm.data.prepare import prepare
from culm.data.prepared import Prepared


@pytest.fixture(scope="module")
def corpora(tokenizer, tmp_path_factory) -> list[Prepared]:
    """Two of text and one of dialogues, of unequal size; each text names its corpus."""
    folder = tmp_path_factory.mktemp("corpora")
    texts = [
        [{"text": f"{name} {n}: the fox jumps. " * (n % 9 + 1)} for n in range(size)]
        for name, size in (("story", 90), ("essay", 35))
    ]
    chats = [{"prompt": f"ask {n}", "completion": f"answer {n}"} for n in range(60)]
    for number, records in enumerate(texts):
        prepare(Records(records), DocumentFormat(), tokenizer, folder / str(number), 0)
    prepare(Records(chats), ChatFormat(), tokenizer, folder / "2", 0)
    return [Prepared.open(folder / str(number)) for number in range(3)]


def mixture(corpora, weights, rows=12, micro=12, seed=3, rank=0, ranks=1, grading=None) -> Mixture:
    loaders = [
        Loader(one, 32, rows, micro, seed, rank, ranks, grading=None if place else grading)
        for place, one in enumerate(corpora)
    ]
    table = np.atleast_2d(np.array(weights, dtype=float))
    return Mixture(loaders, table, rows, micro, seed, rank, ranks)


def rows_in(batches) -> Counter:
    return Counter(tuple(row) for batch in batches for row in batch.tokens.tolist())


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.sampled_from([(1, 5), (2, 6), (3, 1), (4, 2), (6, 2)]),
    st.integers(0, 10**6),
)
def test_ranks_and_micro_batches_only_divide_a_step(corpora, weights, layout, number) -> None:
    [whole] = mixture(corpora, weights).step(number)
    ranks, micro = layout
    shares = [
        mixture(corpora, weights, micro=micro, rank=rank, ranks=ranks).step(number)
        for rank in range(ranks)
    ]
    assert rows_in(chain(*shares)) == rows_in([whole])
    assert len({len(share) for share in shares}) == 1
    for name in ("targets", "tokens", "rows"):
        assert sum(b.counts[name] for share in shares for b in share) == whole.counts[name]


def test_every_corpus_is_read_in_its_own_order(corpora) -> None:
    """As if it were alone: no row comes again before every other one did."""
    mixed = mixture(corpora, [3, 1, 2])
    places = [place for number in range(60) for place in mixed.places(number)]
    for corpus, one in enumerate(mixed.corpora):
        read = [row for number, row in places if number == corpus]
        assert len(read) == 60 * 12 * (3, 1, 2)[corpus] // 6
        times = Counter(read)
        epochs = len(read) / one.rows
        assert set(times.values()) <= {int(epochs), int(epochs) + 1}
        assert len(times) == min(one.rows, len(read))


def test_a_step_is_a_pure_function_of_seed_and_number(corpora) -> None:
    one, two = mixture(corpora, [1, 1, 1]), mixture(corpora, [1, 1, 1])
    wanted = [two.places(number) for number in range(9)]
    for number in (8, 2, 0, 8, 5):
        assert one.places(number) == wanted[number]
    assert one.fingerprint == two.fingerprint
    others = [mixture(corpora, [1, 1, 1], seed=4), mixture(corpora, [1, 2, 1])]
    others.append(mixture(corpora, [[1, 0, 1], [1, 1, 1]]))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert others[0].places(0) != wanted[0]


def test_the_first_step_has_rows_of_all(corpora) -> None:
    mixed = mixture(corpora, [1, 1, 1])
    assert Counter(corpus for corpus, _ in mixed.places(0)) == {0: 4, 1: 4, 2: 4}
    micro = mixture(corpora, [1, 1, 1], micro=6).step(0)
    assert all(batch.tokens.shape == (6, 32) for batch in micro)
    orders = {tuple(corpus for corpus, _ in mixed.places(number)) for number in range(5)}
    assert len(orders) == 5  # or the last ranks would always have the last corpus


def test_weights_change_and_the_log_says_so(corpora) -> None:
    mixed = mixture(corpora, [[1, 0, 0]] * 3 + [[1, 0, 2]])
    counts = [Counter(corpus for corpus, _ in mixed.places(number)) for number in range(5)]
    assert counts == [{0: 12}] * 3 + [{0: 4, 2: 8}] * 2
    shares = [mixed.step(number)[0].metrics for number in (2, 3)]
    assert [one["share_0"] for one in shares] == pytest.approx([1, 1 / 3])
    assert [one["share_2"] for one in shares] == pytest.approx([0, 2 / 3])
    assert mixture(corpora, [1, 1, 1]).step(0)[0].metrics == {}


def test_one_corpus_may_have_a_curriculum(corpora) -> None:
    """Its steps are those of the run, however many rows the others take."""
    curriculum = parse(Curriculum, {"steps": 6, "strategy": {"kind": "one_pass", "buckets": 2}})
    grading = Grading(curriculum, Length().measure)
    mixed = mixture(corpora, [[1, 0, 0], [1, 1, 0], [2, 3, 1]], grading=grading)
    order = mixed.corpora[0].order
    for number in range(6):
        allowed = set(order.allowed(number).tolist())
        read = [row for corpus, row in mixed.places(number) if corpus == 0]
        assert read
        assert set(read) <= allowed
    after = [row for n in range(6, 90) for corpus, row in mixed.places(n) if corpus == 0]
    epochs = len(after) / mixed.corpora[0].rows
    assert set(Counter(after).values()) <= {int(epochs), int(epochs) + 1}


def test_the_rows_of_a_run_are_counted(corpora) -> None:
    mixed = mixture(corpora, [3, 1, 2])
    reads = mixed.reads(10)
    assert [one.rows for one in reads] == [60, 20, 40]
    assert sum(one.share for one in reads) == 1


def test_a_preview_shows_rows_of_each(corpora) -> None:
    mixed = mixture(corpora, [3, 1, 2], rows=400_000_000, micro=400_000_000)
    assert [mixed.corpora.index(one) for one, _ in mixed.preview(4)] == [0, 1, 2, 0]
    assert len({row for one, row in mixed.preview(4) if one is mixed.corpora[0]}) == 2


def test_rows_must_divide_over_the_ranks(corpora) -> None:
    with pytest.raises(SettingError, match=r"train\.batch_size: 12 does not divide over 5 ranks"):
        mixture(corpora, [1, 1, 1], ranks=5)
