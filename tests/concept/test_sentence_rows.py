"""Documents as rows of sentences: in order, whole, and the same for any number of ranks."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.concept.sentences import END
from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.format.sentences import SentencesFormat
from culm.data.loader import Loader
from culm.data.pack import neighbours
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.source import open_source

TEXTS = [f"The fox number {n} ran. " * (n % 5 + 1) + "It slept." for n in range(20)]


@pytest.fixture
def corpus(tokenizer, tmp_path):
    def build(texts=TEXTS, **settings):
        path = tmp_path / "t.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        source, format = open_source(str(path)), SentencesFormat(**settings)
        prepare(source, format, tokenizer, tmp_path / "p", held_out=0)
        return Prepared.open(tmp_path / "p")

    return build


def sentences_of(batch, tokenizer):
    """The text of each row, in sentences."""
    rows = []
    for tokens, numbers, length in zip(batch.tokens, batch.documents, batch.lengths, strict=True):
        ids = [
            tokens[:length][numbers[:length] == n].tolist()
            for n in range(numbers[:length].max() + 1)
        ]
        for one in ids:
            assert one[0] == one[-1] == tokenizer.end_of_text
        rows.append([tokenizer.decode(one[1:-1]) for one in ids])
    return rows


def test_a_row_has_neighbouring_sentences_of_one_document(corpus, tokenizer) -> None:
    loader = Loader(corpus(sentences=4), 128, 8, 8, seed=0)
    found = []
    for rows in range(0, loader.rows, 4):
        batch = loader.batch(range(rows, min(rows + 4, loader.rows)))
        read = sentences_of(batch, tokenizer)
        assert batch.counts["sentences"] == sum(map(len, read))
        assert batch.counts["successors"] == sum(len(row) - 1 for row in read)
        found += read
    assert all(len(row) <= 4 for row in found)
    whole = "".join(text for row in found for text in row).split(END)
    assert sorted(whole) == sorted([*TEXTS, ""])
    assert not any(END in row[:-1] for row in found)  # a document begins a row


def test_ranks_and_micro_batches_only_divide_a_step(corpus) -> None:
    prepared = corpus(sentences=3)
    [whole] = Loader(prepared, 96, 8, 8, seed=1).step(5)
    for ranks, micro in ((2, 4), (4, 1)):
        parts = [
            b for r in range(ranks) for b in Loader(prepared, 96, 8, micro, 1, r, ranks).step(5)
        ]
        assert torch.equal(torch.cat([b.tokens for b in parts]), whole.tokens)
        for name, count in whole.counts.items():
            assert sum(b.counts[name] for b in parts) == count


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_neighbours_stay_in_order_and_fit(documents: list[tuple[int, bool]]) -> None:
    sizes, first = zip(*documents, strict=True)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = neighbours(offsets, 10, np.array(first))
    segments = [segment for row in range(len(rows)) for segment in rows[row]]
    assert segments == list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    number = 0
    for row in range(len(rows)):
        assert sum(end - start for start, end in rows[row]) <= 10
        assert not any(first[number + 1 : number + len(rows[row])])
        number += len(rows[row])


def test_empty_documents_and_single_words(corpus, tokenizer) -> None:
    loader = Loader(corpus(["", "  \n", "word", "雨が降った。It rains. نعم؟ ok"]), 96, 2, 2, seed=0)
    rows = sentences_of(loader.batch(range(loader.rows)), tokenizer)
    assert sorted(rows) == [["word", END], ["雨が降った。", "It rains. ", "نعم؟ ", "ok", END]]


def test_a_corpus_of_no_words_is_refused(corpus) -> None:
    with pytest.raises(SettingError, match="nothing to read"):
        corpus(["", "\n \n"])


def test_what_does_not_go_with_sentences(corpus) -> None:
    with pytest.raises(SettingError, match=r"data\.packing: sentences are not packed"):
        Loader(corpus(), 96, 2, 2, seed=0, packing="wrapped")
    with pytest.raises(ValueError, match="no text in 'text'"):
        list(SentencesFormat().contents({"body": "x"}))
    assert list(DocumentFormat().texts({"text": "a"})) == list(
        SentencesFormat().texts({"text": "a"})
    )
