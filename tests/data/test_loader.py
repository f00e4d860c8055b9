"""The order of batches: pure in the seed and the step, whatever the ranks and micro-batches."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_prepare import Records

from culm.batch import IGNORED
from culm.config import SettingError
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.pair import PairFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.loader import Loader
from culm.data.order import Epochs
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.shards import SplitWriter
from culm.seed import keyed_permutation


@pytest.fixture(scope="module")
def corpus(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "p"
    source = Records([{"text": f"story {n}: the fox jumps. " * (n % 9 + 1)} for n in range(150)])
    prepare(source, DocumentFormat(), tokenizer, folder)
    return Prepared.open(folder)


def prepared(records, format, tokenizer, folder, **options):
    prepare(Records(records), format, tokenizer, folder, held_out=0)
    return Prepared.open(folder)


def adapter_rows(batches):
    return [row.tolist() for batch in batches for row in batch.tokens]


def test_ranks_and_micro_batches_only_divide_a_step(corpus):
    whole = Loader(corpus, 32, rows_per_step=12, micro_rows=12, seed=3)
    for number in (0, 1, 7, 50):
        [batch] = whole.step(number)
        assert batch.tokens.shape == (12, 32)
        for ranks, micro_rows in ((1, 5), (2, 6), (3, 1), (4, 2)):
            parts = [
                Loader(corpus, 32, 12, micro_rows, 3, rank, ranks).step(number)
                for rank in range(ranks)
            ]
            assert len({len(part) for part in parts}) == 1
            assert adapter_rows(b for part in parts for b in part) == adapter_rows([batch])
            assert (
                sum(b.counts["targets"] for part in parts for b in part) == batch.counts["targets"]
            )


def test_a_step_is_a_pure_function_of_seed_and_number(corpus):
    one, two = (Loader(corpus, 32, 8, 8, seed=0) for _ in range(2))
    for number in (9, 2, 9, 31, 0):
        assert adapter_rows(one.step(number)) == adapter_rows(two.step(number))
    assert one.fingerprint == two.fingerprint
    other = Loader(corpus, 32, 8, 8, seed=1)
    assert other.fingerprint != one.fingerprint
    assert adapter_rows(other.step(0)) != adapter_rows(one.step(0))


def test_an_epoch_shows_each_row_once_and_the_next_in_another_order(corpus):
    loader = Loader(corpus, 32, rows_per_step=1, micro_rows=1, seed=0)
    epochs = [
        [adapter_rows(loader.step(number))[0] for number in range(start, start + loader.rows)]
        for start in (0, loader.rows)
    ]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert loader.epoch_steps == loader.rows
    weights = sum(loader.step(number)[0].counts["targets"] for number in range(loader.rows))
    assert weights == loader.targets == corpus.facts.tokens - corpus.facts.documents


def test_evaluation_reads_rows_from_all_of_the_corpus(corpus):
    loader = Loader(corpus, 32, 8, 8, seed=0)
    whole = adapter_rows(loader.sample(loader.targets))
    assert len(whole) == len({tuple(row) for row in whole}) == loader.rows
    assert adapter_rows(loader.sample(10**9)) == whole
    assert adapter_rows(loader.sample(1)) == whole[:1]
    some = adapter_rows(loader.sample(loader.targets // 4))
    assert len(some) == pytest.approx(loader.rows / 4, abs=1)
    places = [whole.index(row) for row in some]
    assert places == sorted(places)
    assert {after - before for before, after in pairwise([*places, loader.rows])} <= {3, 4, 5}


def test_a_small_corpus_wraps_within_a_step(tokenizer, tmp_path):
    small = prepared(
        [{"text": "a b c"}, {"text": "d"}], DocumentFormat(), tokenizer, tmp_path / "p"
    )
    loader = Loader(small, 64, rows_per_step=4, micro_rows=2, seed=0)
    assert (loader.rows, loader.epoch_steps) == (1, 1)
    assert len(adapter_rows(loader.step(5))) == 4


def test_dialogues_are_packed_whole_with_their_masks(tokenizer, tmp_path):
    records = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(30)]
    chats = prepared(records, ChatFormat(), tokenizer, tmp_path / "p")
    loader = Loader(chats, 128, rows_per_step=4, micro_rows=4, seed=0)
    assert loader.efficiency > 0.8
    assert (loader.truncated, loader.left_out) == (0, 0)
    learned = []
    for number in range(loader.epoch_steps):
        for batch in loader.step(number):
            assert batch.counts["targets"] == (batch.targets != IGNORED).sum()
            for targets in batch.targets:
                learned.append(
                    tokenizer.decode(targets[targets != IGNORED].tolist(), specials=True)
                )
    text = "".join(learned[: loader.rows])
    assert sorted(text.split("<|end|>")[:-1]) == sorted(f"answer {n}" for n in range(30))
    assert loader.targets == chats.facts.learned


def test_pairs_stay_together(tokenizer, tmp_path):
    records = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(9)]
    pairs = prepared(records, PairFormat(), tokenizer, tmp_path / "p")
    with pytest.raises(SettingError, match=r"data\.packing: pairs are not packed"):
        Loader(pairs, 512, rows_per_step=6, micro_rows=3, seed=0, packing="best_fit")
    loader = Loader(pairs, 512, rows_per_step=6, micro_rows=3, seed=0)
    assert loader.rows == 9
    for batch in loader.step(0) + loader.step(1):
        assert batch.tokens.shape == (6, 64)  # padded to the longest, not to the context
        assert batch.counts["pairs"] == 3
        assert batch.documents is None
        for chosen, rejected in zip(batch.tokens[::2], batch.tokens[1::2], strict=True):
            good, bad = tokenizer.decode(chosen.tolist()), tokenizer.decode(rejected.tolist())
            assert good.replace("good", "bad") == bad


def test_what_is_cut_off_is_counted(tokenizer, tmp_path):
    records = [{"prompt": "q" * 40, "completion": "a"}, {"prompt": "q", "completion": "a" * 40}]
    chats = prepared(records, ChatFormat(), tokenizer, tmp_path / "p")
    loader = Loader(chats, 16, 1, 1, seed=0)
    assert (loader.rows, loader.truncated, loader.left_out) == (1, 1, 1)
    assert all(batch.counts["targets"] > 0 for batch in loader.step(0))
    hopeless = prepared(records[:1], ChatFormat(), tokenizer, tmp_path / "q")
    with pytest.raises(SettingError, match="no token of the split 'train' would be learned"):
        Loader(hopeless, 16, 1, 1, seed=0)


def test_learned_targets_are_counted_as_they_are_read(tokenizer, tmp_path):
    records = [{"prompt": "q" * (n % 11), "completion": "a" * (n % 7 + 1)} for n in range(60)]
    chats = prepared(records, ChatFormat(), tokenizer, tmp_path / "p")
    for packing in ("wrapped", "best_fit"):
        loader = Loader(chats, 16, 1, 1, seed=0, packing=packing)
        assert loader.targets == sum(
            batch.counts["targets"] for batch in loader.sample(loader.targets)
        )
        assert loader.learns([tokenizer.end_of_turn])
        assert not loader.learns([tokenizer.end_of_text])


def test_bad_sizes_are_named(corpus):
    with pytest.raises(SettingError, match=r"train\.batch_size: 8 does not divide over 3 ranks"):
        Loader(corpus, 32, 8, 8, 0, ranks=3)
    with pytest.raises(SettingError, match=r"train\.context: 1 leaves nothing to predict"):
        Loader(corpus, 1, 8, 8, 0)


def test_a_preview_marks_what_is_learned(tokenizer, tmp_path):
    records = [{"prompt": "hello", "completion": "world"}, {"prompt": "a", "completion": "b"}]
    chats = prepared(records, ChatFormat(), tokenizer, tmp_path / "p")
    [spans] = Loader(chats, 64, 1, 1, seed=0).preview(3, tokenizer)
    assert ("world<|end|>", True) in spans
    assert ("<|user|>hello<|end|><|assistant|>", False) in spans


def test_a_preview_of_a_huge_step_is_quick(corpus, tokenizer):
    loader = Loader(corpus, 32, 400_000_000, 400_000_000, seed=0)
    few = Loader(corpus, 32, 1, 1, seed=0)
    assert loader.preview(3, tokenizer) == few.preview(3, tokenizer)


def test_packings_agree_on_what_is_learned(corpus):
    loaders = [Loader(corpus, 64, 4, 4, 0, packing=p) for p in ("wrapped", "best_fit")]
    assert [loader.truncated for loader in loaders] == [0, 0]
    assert loaders[0].targets >= loaders[1].targets > 0.9 * loaders[0].targets


def test_packing_is_reported(corpus, tokenizer, tmp_path):
    wrapped, fitted = (Loader(corpus, 64, 4, 4, 0, packing=p) for p in ("wrapped", "best_fit"))
    said = (
        r"rows of 64 tokens, [\d.]+ % filled; [\d.]+ % of the documents are cut, [\d.]+ % of the "
    )
    for loader in (wrapped, fitted):
        assert re.match(said + "tokens are predicted without the beginning", loader.packing)
        assert "left out" not in loader.packing
    records = [{"prompt": "q", "completion": "a" * 40}, {"prompt": "q", "completion": "a"}]
    chats = prepared(records, ChatFormat(), tokenizer, tmp_path / "p")
    loader = Loader(chats, 16, 1, 1, seed=0)
    lengths = np.diff(chats.offsets)
    lost = 100 * np.maximum(lengths - 16, 0).sum() / lengths.sum()
    assert "50.0 % of the documents are cut, 0.0 %" in loader.packing
    assert loader.packing.endswith(f"{lost:.1f} % are left out")


def test_batches_move_to_a_device(corpus):
    [batch] = Loader(corpus, 32, 2, 2, 0).step(0)
    moved = batch.to("meta")
    assert moved.tokens.device == moved.documents.device == torch.device("meta")


SCORES, SIZES = [3, 1, 2, 0], [2, 3, 4] * 4
RANKINGS = [
    {"prompt": f"q{n}", "completions": list("abcd"[:size]), "scores": SCORES[:size]}
    for n, size in enumerate(SIZES)
]


def test_the_answers_of_a_ranking_are_in_one_batch(tokenizer, tmp_path):
    corpus = prepared(RANKINGS, RankingFormat(), tokenizer, tmp_path / "p")
    loader = Loader(corpus, 64, rows_per_step=4, micro_rows=2, seed=1)
    assert (loader.rows, loader.group, loader.gives) == (12, 4, "rankings")
    seen = []
    for number in range(3):
        for batch in loader.step(number):
            assert batch.counts["rankings"] == 2
            assert batch.counts["rows"] == len(batch.tokens)
            places = batch.extra["place"].tolist()
            assert places.count(0) == 2
            for row, place in enumerate(places):
                said = tokenizer.decode(batch.tokens[row].tolist())
                assert batch.extra["score"][row] == SCORES[int(place)]
                assert said.rstrip().endswith("abcd"[int(place)])
                seen.append(said)
    assert len(set(seen)) == sum(SIZES)
    whole = Loader(corpus, 64, 4, 4, seed=1).step(0)[0]
    ranks = [Loader(corpus, 64, 4, 2, 1, rank, 2).step(0)[0] for rank in range(2)]
    assert (
        torch.cat([one.extra["score"] for one in ranks]).tolist() == whole.extra["score"].tolist()
    )


def test_a_label_is_at_the_last_token_of_its_step(tokenizer, tmp_path):
    steps, labels = ["one", "two", "three"], [1, 0, 0.5]
    records = [
        {"prompt": f"q{n}", "steps": steps[:size], "labels": labels[:size]}
        for n, size in enumerate([1, 2, 3] * 2)
    ]
    corpus = prepared(records, StepsFormat(), tokenizer, tmp_path / "p")
    loader = Loader(corpus, 64, 6, 6, seed=0)
    [batch] = loader.step(0)
    labels = batch.extra["label"]
    assert labels.shape == batch.tokens.shape
    known = ~labels.isnan()
    assert known.sum() == batch.counts["targets"] == 12
    assert torch.equal(known[:, 1:], batch.targets[:, :-1] != IGNORED)
    for row, mask in zip(labels, known, strict=True):
        assert row[mask].tolist() == [1, 0, 0.5][: int(mask.sum())]
    short = Loader(corpus, int(batch.lengths.max()) - 1, 6, 6, seed=0)
    assert short.truncated == 2
    assert short.step(0)[0].counts["targets"] == 10


def test_a_span_may_cross_shards(corpus, tmp_path):
    """Rows are read at once where their documents follow each other."""
    writer = SplitWriter(tmp_path / "train", 300, limit=10)
    parts = [np.arange(start, start + 6, dtype=np.uint32) for start in (0, 6, 12)]
    for part in parts:
        writer.append([(part, part % 2 == 0, ())], 6)
    shards = Prepared(tmp_path, "train", corpus.manifest, writer.facts())
    tokens, learned = shards.read(2, 17)
    assert tokens.tolist() == list(range(2, 17))
    assert learned.tolist() == [token % 2 == 0 for token in range(2, 17)]


def test_an_endless_order_is_the_permutation_of_each_epoch_place_by_place():
    rows = np.arange(3, 10)
    places = [
        int(keyed_permutation(rows, 5, index // 7)[index % 7]) for index in range(40)
    ]  # fmt: skip
    for first, last in ((0, 40), (6, 8), (13, 15), (7, 7), (20, 36), (2, 3)):
        assert Epochs(rows, 5).between(first, last) == places[first:last]
