"""Sentences of texts in several scripts; joined, they are the text again."""

# ruff: noqa: RUF001 - marks of other scripts look like ours

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.concept.sentences import MAX_CHARACTERS, split


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained. ", "He ran! ", "Why?"],
        ['"It rained." ', "He ran."],
        ["Mr. Hyde met Dr. J. Lanyon at St. Giles. ", "They spoke."],
        ["It cost 3.14 dollars. ", "Cheap…"],
        ["He said: e.g. this one. ", "Then that."],
        ["CHAPTER I\n\n", "It rained.\n\n", "He ran."],
        ["  Spaces first. ", "Then none."],
        ["雨が降った。", "彼は走った！", "なぜ？"],
        ["क्या हुआ? ", "वह गया। ", "बस।"],
        ["هل أمطرت؟ ", "نعم."],
        ["Il pleut. ", "雨です。", "It rains."],
        ["no end at all"],
        ["one"],
        ["."],
    ],
)
def test_a_text_in_its_sentences(sentences: list[str]) -> None:
    assert split("".join(sentences)) == sentences


@pytest.mark.parametrize("text", ["", " ", "\n\n\n"])
def test_a_text_without_words_loses_nothing(text: str) -> None:
    assert "".join(split(text)) == text


def test_a_long_sentence_is_split_at_its_best_separators() -> None:
    clause = "and then the rain fell on the roofs of the old town, while "
    long = (clause * 3)[:-2] + "; " + clause * 4
    parts = split(long)
    assert "".join(parts) == long
    assert all(len(part) <= MAX_CHARACTERS for part in parts)
    assert parts[0].endswith("; ")
    assert all(part.endswith(", ") for part in parts[1:-1])


def test_a_text_without_separators_is_cut_at_the_limit() -> None:
    assert [len(part) for part in split("a" * 450)] == [200, 200, 50]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a" + "." * 200_000 + "b", 1001),
        ("a." + '"' * 200_000 + "b", 1001),
        ("a" + " " * 200_000 + "b", 1001),
        ("Mr. " * 50_000, 1000),
        ("word " * 400_000, 10_000),
        ("x" * 2_000_000, 10_000),
    ],
    ids=["dots", "quotes", "spaces", "abbreviations", "words", "letters"],
)
@pytest.mark.timeout(10)
def test_long_texts_without_ends_take_no_square_of_time(text: str, count: int) -> None:
    """With the square of its length, each of them would take minutes."""
    parts = split(text)
    assert "".join(parts) == text
    assert len(parts) == count


@given(st.text(alphabet="aB .!?…\n\"')。！,;:—　١؟\u0301", max_size=120), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_sentences_joined_are_the_text(text: str, limit: int) -> None:
    parts = split(text, limit)
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)
