import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.config import SettingError, parse
from culm.tokenizer import BPE, SuperBPE, TokenizerConfig
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.dropout import DropoutEncoder
from culm.tokenizer.superbpe import pairs_at
from culm.tokenizer.tokenizer import Tokenizer

LOG = (Path(__file__).parents[2] / "docs" / "log.md").read_text()[:80_000]
TRAINING, HELD_OUT = LOG[:60_000], LOG[60_000:]
VOCABULARY = 600


@pytest.fixture(scope="module")
def superbpe():
    return SuperBPE(vocabulary=VOCABULARY).build([TRAINING])


@pytest.fixture(scope="module")
def bpe():
    return BPE(vocabulary=VOCABULARY).build([TRAINING])


@pytest.fixture(scope="module")
def dropout(superbpe):
    return DropoutEncoder(superbpe)


def test_tokens_hold_more_bytes_than_those_of_bpe_with_as_many_ids(superbpe, bpe):
    assert superbpe.vocabulary == bpe.vocabulary == VOCABULARY
    assert len(superbpe.encode(HELD_OUT)) < 0.99 * len(bpe.encode(HELD_OUT))
    spelt = [superbpe.bytes_of(id) for id in range(superbpe.vocabulary)]
    assert any(b" " in one.strip() for one in spelt)
    assert max(len(one.split()) for one in spelt) <= 4


@given(st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_every_text_survives(superbpe, bpe, dropout, written):
    for tokenizer in (superbpe, bpe):
        assert tokenizer.decode(tokenizer.encode(written)) == written
    assert superbpe.decode(dropout.encode(written, 0.3, random.Random(0))) == written


def test_it_is_saved_and_loaded(superbpe, tmp_path):
    superbpe.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == superbpe.fingerprint
    assert loaded.encode(HELD_OUT) == superbpe.encode(HELD_OUT)
    assert loaded.template is not None


def test_the_next_merge_is_the_most_frequent_pair(superbpe):
    specials = len(superbpe.specials)
    within = 256 + specials + round(0.75 * (VOCABULARY - 256 - specials))
    first = BPE(vocabulary=within, digits="single").build([TRAINING])
    assert first.vocabulary == within
    # Before stage 2 no token has a space inside; the first of stage 2 joins two of stage 1.
    joined = superbpe.bytes_of(first.vocabulary)
    parts = {first.bytes_of(id) for id in range(first.vocabulary)}
    assert any(joined[:cut] in parts and joined[cut:] in parts for cut in range(1, len(joined)))


def test_pairs_of_equal_tokens_do_not_overlap():
    tokens = np.array([7, 7, 7, 1, 7, 7, 7, 7])
    assert pairs_at(tokens, 7, 7).tolist() == [0, 4, 6]
    assert pairs_at(tokens, 7, 1).tolist() == [2]


def test_a_colon_and_digits_stay_separate():
    made = SuperBPE(vocabulary=300).build(["to: 12 go: 12 to: 12 go: 12 at: 12 at: 12 " * 40])
    spelt = [made.bytes_of(id) for id in range(262, made.vocabulary)]
    assert not any(b":" in one or b"12" in one for one in spelt)


def test_a_run_file_can_name_it():
    assert parse(TokenizerConfig, {"kind": "superbpe", "vocabulary": 400}).words == 0.75


def test_dropout_is_bpe_at_0_and_bytes_at_1(bpe):
    dropout, written, chance = DropoutEncoder(bpe), HELD_OUT[:3000], random.Random(0)
    assert dropout.encode(written, 0.0, chance) == bpe.encode(written)
    assert len(dropout.encode(written, 1.0, chance)) == len(written.encode())
    some = dropout.encode(written, 0.1, chance)
    assert len(bpe.encode(written)) < len(some) < len(written.encode())
    assert bpe.decode(some) == written


def test_dropout_needs_merges():
    with pytest.raises(
        SettingError, match="bpe_dropout: it needs a byte-level BPE that has merges"
    ):
        DropoutEncoder(Bytes().build())


@pytest.mark.parametrize("change", ["normalizer", "added", "words"])
def test_dropout_needs_a_tokenizer_that_reads_bytes_as_they_are(bpe, change):
    """It would write ids that the tokenizer itself does not give, or none for a character."""
    inner = tokenizers.Tokenizer.from_str(bpe.json)
    if change == "normalizer":
        inner.normalizer = tokenizers.normalizers.NFKC()
    elif change == "added":
        inner.add_tokens(["<think>"])
    else:
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    with pytest.raises(SettingError, match="bpe_dropout: it needs a byte-level BPE"):
        DropoutEncoder(Tokenizer(inner))
