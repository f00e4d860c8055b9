"""The rules of Gopher, C4 and FineWeb: each at its threshold, and all against datatrove's."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from culm.config import SettingError
from culm.data.clean import lines
from culm.data.clean.c4 import C4
from culm.data.clean.fineweb import FineWeb
from culm.data.clean.gopher import Gopher
from culm.data.clean.repetition import Repetition
from culm.data.clean.stage import Dropped, Stage

PLAIN = "The river that flows to the sea and the stones with moss have been here ages. "
WORDS = [f"{a}{b}" for a in "bcdfglmnprst" for b in ("amber", "orchid", "umbra", "evening", "isle")]


def applied(stage: Stage, text: str) -> str | None:
    """Why a text is dropped; None if it stays."""
    found = stage.build().apply([text], Counter())
    return found.reason if isinstance(found, Dropped) else None


def random_words(count: int, seed: int = 0) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


FIVE = PLAIN * 5  # of 16 words each


@pytest.mark.parametrize(
    ("settings", "kept", "dropped", "reason"),
    [
        ({}, PLAIN * 4, PLAIN * 3, "fewer than 50 words"),
        ({"max_words": 60}, PLAIN * 3 + "a b c", PLAIN * 4, "more than 60 words"),
        (
            {},
            "the and " + "abc " * 60,
            "the and " + "ab " * 60,
            "words of fewer",
        ),
        ({}, "the to " + "abcdefghij " * 60, "the to " + "abcdefghijk " * 60, "words of more than"),
        ({}, FIVE + "#" * 8, FIVE + "#" * 9, "more than 0.1 hash signs"),
        ({}, FIVE + "... " * 8 + "x", FIVE + "... " * 9 + "x", "more than 0.1 ellipses"),
        ({}, FIVE + "\n- a" * 9, FIVE + "\n- a" * 10, "a bullet before more than 90%"),
        (
            {"max_ellipses": None},
            f"{FIVE}\nx...\ny\nz\nw...",
            f"{FIVE}\nx...\ny...\nz\nw...",
            "an ellipsis after more than 30%",
        ),
        ({}, PLAIN * 4 + "123 " * 16, PLAIN * 4 + "123 " * 17, "a letter in less than 80%"),
        ({}, "the and " + "lorem " * 60, "the the " + "lorem " * 60, "fewer than 2 stop words"),
    ],
)
def test_gopher_at_each_threshold(settings: dict, kept: str, dropped: str, reason: str) -> None:
    stage = Gopher(**settings)
    if "ellipsis" in reason:
        kept = f"{FIVE}\nx...\ny\nz"
    assert applied(stage, kept) is None
    assert str(applied(stage, dropped)).startswith(reason)
    off = dict.fromkeys([name for name in Gopher.model_fields if name.startswith(("min", "max"))])
    assert applied(Gopher(**off), dropped) is None


def test_repetition_of_lines_and_paragraphs() -> None:
    own = [" ".join(random_words(30, seed)) for seed in range(7)]
    none = {"max_top": {}, "max_duplicate": {}}
    assert applied(Repetition(), "\n".join(own)) is None
    short = ["x"] * 4  # three of ten lines, then four of eleven
    assert applied(Repetition(**none), "\n".join([*own[:6], *short])) is None
    assert applied(Repetition(**none), "\n".join([*own[:6], *short, "x"])) == (
        "more than 30% of the lines are duplicates"
    )
    long = "\n".join([*own, own[0], own[1]])
    assert (
        applied(Repetition(**none), long) == "duplicate lines are more than 20% of the characters"
    )
    parts = "\n\n".join([*own[:6], *short, "x"])
    assert applied(Repetition(**none), parts) == "more than 30% of the paragraphs are duplicates"


def test_repetition_of_words_is_as_a_slow_count_has_it() -> None:
    def by_hand(tokens: list[str], length: int) -> tuple[int, int]:
        grams = [tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)]
        counts = Counter(grams)
        most, times = counts.most_common(1)[0] if grams else ((), 0)
        known, at, characters = set(), 0, 0
        while at < len(grams):
            if grams[at] in known:
                characters += sum(map(len, grams[at]))
                at += length
            else:
                known.add(grams[at])
                at += 1
        return (times * sum(map(len, most)) if times > 1 else 0), characters

    for seed in range(40):
        chance = random.Random(seed)
        tokens = chance.choices(WORDS[: chance.choice((3, 8, 40))], k=chance.randrange(1, 200))
        size = len(" ".join(tokens))
        for length in (2, 3, 5, 10):
            top, duplicate = by_hand(tokens, length)
            for name, found in (("max_top", top), ("max_duplicate", duplicate)):
                off = {"max_top": {}, "max_duplicate": {}}
                for limit, dropped in ((found + 0.5, False), (found - 0.5, True)):
                    stage = Repetition(**{**off, name: {length: limit / size}})
                    if found:
                        assert (applied(stage, " ".join(tokens)) is not None) == dropped


SENTENCES = [f"Here is sentence number {n} of it." for n in range(5)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("No mark at the end", "no terminal punctuation"),
        ("It goes on...", "no terminal punctuation"),
        ("Two words.", "fewer than 3 words"),
        ("Please enable JavaScript to continue.", "JavaScript"),
        ("Read our privacy policy here.", "a policy"),
        (f"A word is {'x' * 1001} here.", "a word of more than 1,000 characters"),
    ],
)
def test_c4_removes_lines(line: str, why: str) -> None:
    changes = Counter[str]()
    found = C4().build().apply(["\n".join([*SENTENCES, line])], changes)
    assert found == ["\n".join(SENTENCES)]
    assert changes == {f"lines are removed: {why}": 1}


def test_c4_drops_documents(tmp_path: Path) -> None:
    text = "\n".join(SENTENCES)
    assert applied(C4(), text) is None
    assert (
        applied(C4(), "\n".join(SENTENCES[:4])) == "fewer than 5 sentences in the lines that stay"
    )
    assert applied(C4(), " ".join(SENTENCES)) is None
    assert applied(C4(), f"{text}\nLorem ipsum dolor.") == "lorem ipsum"
    assert applied(C4(), f"{text}\nint main() {{") == "a curly bracket"
    assert applied(C4(curly_brackets=False), f"{text}\nint main() {{") is None
    words = tmp_path / "words.txt"
    words.write_text("badword\nworse phrase\n")
    stage = C4(bad_words=words)
    assert stage.files == (words,)
    assert applied(stage, f"{text}\nA Badword!") == applied(stage, f"{text} A worse phrase.")
    assert applied(stage, f"{text}\nA badwords list.") is None
    words.write_text("\n")
    with pytest.raises(SettingError, match="has no words"):
        stage.build()


def test_c4_removes_citations() -> None:
    text = "\n".join(f"{one[:-1]}[{n}] [citation needed]." for n, one in enumerate(SENTENCES))
    assert C4().build().apply([text], Counter()) == [
        "\n".join(f"{one[:-1]} ." for one in SENTENCES)
    ]


def test_fineweb_at_each_threshold() -> None:
    long = "a line that has more than thirty characters {}"
    eight = [long.format(n) for n in range(22)] + [f"{long.format('x')}, n{n}." for n in range(3)]
    assert applied(FineWeb(), "\n".join(eight)) is None
    assert applied(FineWeb(), "\n".join(eight[:-1])).startswith("terminal punctuation after less")
    short = [f"line {n}." for n in range(4)]
    assert applied(FineWeb(max_line_feeds=None), "\n".join([*eight[-2:], *short])) is None
    five = "\n".join([*eight[-2:], *short, "line 5."])
    assert applied(FineWeb(max_line_feeds=None), five) == "more than 67% of the lines are short"
    again = "\n".join([*eight, eight[-1]])
    assert applied(FineWeb(), again) == "duplicate lines are more than 1% of the characters"
    feeds = ("\n" * 8).join(eight[-3:])
    assert applied(FineWeb(), feeds) == "more than 0.3 line feeds for each word"


def texts(shared: Callable[[str], Path], count: int = 300) -> list[str]:
    found = []
    for name in ("web_c4_wiki/c4_demo", "techdocs_cpp/cpp-docs-00"):
        with gzip.open(shared(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
            found += [json.loads(line)["text"] for _, line in zip(range(count), file, strict=False)]
    return found


# Its share of words with a letter, and signs for each word, count punctuation among the words.
GOPHER = Gopher(min_alphabetic=None, max_hashes=None, max_ellipses=None)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [GOPHER, Repetition(), FineWeb()])
def test_as_datatrove_decides(
    stage: Stage, shared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same words. An n-gram that stands there once may be its most frequent one."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document

    for name in ("fineweb_quality", "gopher_quality", "gopher_repetition"):
        module = f"datatrove.pipeline.filters.{name}_filter"
        monkeypatch.setattr(f"{module}.split_into_words", lambda text, _: lines.tokens_of(text))
    theirs = {
        "gopher": lambda: filters.GopherQualityFilter(
            max_non_alpha_words_ratio=None, max_symbol_word_ratio=None
        ),
        "repetition": filters.GopherRepetitionFilter,
        "fineweb": filters.FineWebQualityFilter,
    }[stage.kind]()
    given, dropped = texts(shared), 0
    differ = Counter[str]()
    for text in given:
        kept = theirs.filter(Document(text=text, id="x"))
        why = kept[1] if isinstance(kept, tuple) else None
        own = applied(stage, text)
        dropped += why is not None
        if (own is None) != (why is None):
            differ[f"{own} and {why}"] += 1
    assert dropped >= 30
    assert differ.total() <= 0.01 * len(given), differ
