"""Words of spaCy as tokens: nothing is lost, and the words are spaCy's."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.config import SettingError
from culm.convert import gguf, hf, native
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.spacy import Spacy
from culm.tokenizer.spacy_words import word_splitter
from culm.tokenizer.tokenizer import Tokenizer

spacy = pytest.importorskip("spacy")
TEXT = "I can't stop.  Mr. Smith's dog (in the U.S.) isn't here; it costs $12.50, see?\n\n" * 3
split = word_splitter("en")
few = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Spacy(vocabulary=330).build([TEXT])


def test_the_words_are_those_of_spacy() -> None:
    found = [word.strip() for word in split(TEXT)]
    wanted = [token.text for token in spacy.blank("en").make_doc(TEXT)]
    assert [word for word in found if word] == [word for word in wanted if not word.isspace()]
    assert split("I can't  stop.") == ["I", " ca", "n't", " ", " stop", "."]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@few
def test_nothing_is_lost(words: Tokenizer, text: str) -> None:
    assert "".join(split(text)) == text
    assert words.decode(words.encode(text)) == text
    assert b"".join(map(words.bytes_of, words.encode(text))) == text.encode()


@given(st.lists(st.sampled_from(["can't", "U.S.", " ", "\n", "東京", "a", "(x)", "\u00a0"])))
@few
def test_long_texts_are_encoded_in_parts(words: Tokenizer, parts: list[str]) -> None:
    """A cut is between a letter and white space, where a word ends in any case."""
    text = "".join(parts)
    for place in range(1, len(text)):
        if text[place - 1].isalpha() and text[place].isspace():
            assert split(text[:place]) + split(text[place:]) == split(text)


def test_ids(words: Tokenizer) -> None:
    names = {words.bytes_of(id): id for id in range(words.vocabulary)}
    assert words.encode("I can't") == [names[b"I"], names[b" ca"], names[b"n't"]]
    assert words.encode(" I") == [names[b" "], names[b"I"]]  # unknown with the space
    assert len(words.encode(" Xyz")) == 4  # bytes
    text = "<|end|>I stop<|user|>"
    assert not set(words.encode(text)) & set(words.specials.values())
    marked = words.encode(text, specials=True)
    assert marked == [words.end_of_turn, names[b"I"], names[b" stop"], words.specials["<|user|>"]]
    assert words.decode(marked, specials=True) == text
    prompt = words.chat.prompt([{"role": "user", "content": "I can't stop."}])
    assert names[b" ca"] in prompt
    tokens = words.offsets.encode("Où I stop")
    assert [(tokens.starts[n], tokens.ends[n]) for n in (-3, -2, -1)] == [
        (2, 3), (3, 4), (4, 9)
    ]  # fmt: skip
    assert words.encode_batch([TEXT] * 9) == [words.encode(TEXT)] * 9


def test_a_folder_and_the_same_vocabulary_otherwise(words: Tokenizer, tmp_path: Path) -> None:
    words.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.encode(TEXT)) == (words.fingerprint, words.encode(TEXT))
    assert words.with_fim().encode(TEXT) == words.encode(TEXT)
    assert Spacy(vocabulary=330).build([TEXT]).fingerprint == words.fingerprint
    assert Spacy(vocabulary=330, language="de").build([TEXT]).fingerprint != words.fingerprint


def test_exports(words: Tokenizer, tmp_path: Path) -> None:
    config = tiny.model().config.model_copy(update={"vocabulary": words.vocabulary})
    model = config.build(0)
    native.save(model, words, tmp_path / "model")
    assert native.load(tmp_path / "model")[1].encode(TEXT) == words.encode(TEXT)
    with pytest.raises(SettingError, match="transformers cannot split text into words as spaCy"):
        hf.export(model, words, tmp_path / "hf")
    with pytest.raises(SettingError, match=r"llama\.cpp cannot split text into words as spaCy"):
        gguf.export(model, words, tmp_path / "m.gguf")


def test_what_is_refused() -> None:
    with pytest.raises(SettingError, match="language: spaCy has no 'xq'"):
        Spacy(language="xq").build([TEXT])
    assert Bytes().build().words is None
