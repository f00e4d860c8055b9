"""Which text is held out: the share by bytes is the one that was asked for."""

from __future__ import annotations

import random

import pytest

from culm.config import SettingError
from culm.data.divide import LONG, STRETCH, Divider, Unit
from culm.data.example import Dialogue

WORDS = "the quick brown fox jumps over a lazy dog and sleeps all day long in wärm grass".split()


def novel(number: int, letters: int) -> str:
    chance = random.Random(number)
    words = chance.choices(WORDS, k=letters // 4)
    return " ".join(words)[:letters]


def divided(texts: list[str], held_out: float, seed: int = 0) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "held_out": []}
    units = (Unit([text], "x: line 1") for text in texts)
    for split, unit in Divider(held_out, seed, "", "drop").divide(units, "x"):
        found[split] += [content for content in unit.contents if isinstance(content, str)]
    return found


def share(found: dict[str, list[str]]) -> float:
    held, all_ = (sum(len(t.encode()) for t in texts) for texts in (
        found["held_out"], [*found["train"], *found["held_out"]]))  # fmt: skip
    return held / all_


@pytest.mark.parametrize("held_out", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("sizes", [[900_000, 1_400_000, 700_000], [2_000_000], [600_000] * 4])
def test_few_long_documents(held_out: float, sizes: list[int]) -> None:
    texts = [novel(number, letters) for number, letters in enumerate(sizes)]
    for seed in range(3):
        found = divided(texts, held_out, seed)
        assert share(found) == pytest.approx(held_out, rel=0.1, abs=0.001)
        assert all(text in "".join(texts) for part in found.values() for text in part)
        assert sum(map(len, [*found["train"], *found["held_out"]])) == sum(map(len, texts))
        # Words stay whole.
        assert {word for part in found.values() for text in part for word in text.split()} <= {
            *WORDS, *(text.split()[-1] for text in texts),
        }  # fmt: skip


def test_many_documents_that_are_long_enough_for_a_part_of_a_stretch() -> None:
    """Each fiftieth of 40,000 letters would be too short to measure on."""
    texts = [novel(number, 40_000) for number in range(300)]
    found = divided(texts, 0.02)
    assert share(found) == pytest.approx(0.02, rel=0.3)
    assert min(map(len, found["held_out"])) > STRETCH / 2


def test_short_documents_are_in_one_split() -> None:
    texts = [novel(number, 2000) for number in range(1000)]
    found = divided(texts, 0.02)
    assert share(found) == pytest.approx(0.02, abs=0.01)
    assert sorted(found["train"] + found["held_out"]) == sorted(texts)


def test_a_document_is_divided_alike_whatever_stands_around_it() -> None:
    texts = [novel(number, LONG * 3) for number in range(8)]
    alone = divided(texts, 0.1)["held_out"]
    among = divided([novel(99, 500), *reversed(texts), novel(100, LONG * 2)], 0.1)["held_out"]
    assert set(alone) <= set(among)
    assert alone != divided(texts, 0.1, seed=1)["held_out"]


@pytest.mark.parametrize("held_out", [0.0, 0.02])
def test_one_document(held_out: float) -> None:
    long, short = novel(0, LONG), novel(0, LONG - 1)
    if not held_out:
        assert divided([short], 0.0) == {"train": [short], "held_out": []}
        return
    assert share(divided([long], held_out)) < 0.1
    with pytest.raises(SettingError, match=r"one document .*cannot be divided"):
        divided([short, short], held_out)
    assert all(divided([long, short], held_out).values())


def test_pairs_and_dialogues_stay_whole() -> None:
    text = novel(0, 2 * LONG)
    dialogue = Dialogue([{"role": "user", "content": text}])

    units = [Unit([dialogue], "x: line 1"), Unit([dialogue, dialogue], "x: line 2")]
    found = list(Divider(0.02, 0, "", "keep").divide(units, "x"))
    assert [len(unit.contents) for _, unit in found] in ([1, 2], [2, 1])
    assert found[0][1].size + found[1][1].size == 3 * len(text.encode())


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_with_two_labels_is_no_duplicate(seed: int) -> None:
    said = Dialogue([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    labels = [(1.0,), (0.0,), (1.0,)]
    units = [Unit([said], f"x: line {n}", label) for n, label in enumerate(labels, start=1)]
    other = Unit([Dialogue([{"role": "assistant", "content": "b"}])], "x: line 4", (1.0,))
    divider = Divider(0.02, seed, "", "drop")
    found = list(divider.divide([*units, other], "x"))
    assert divider.dropped == 1
    assert sorted(unit.numbers for _, unit in found if unit is not other) == [(0.0,), (1.0,)]
    assert len({split for split, unit in found if unit is not other}) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_text_that_is_kept_twice_is_in_one_split(seed: int) -> None:
    units = [Unit([text], "x: line 1") for text in ("one", "two", "one", "two", "one")]
    found = list(Divider(0.02, seed, "", "keep").divide(units, "x"))
    assert len(found) == 5
    assert len({(split, unit.contents[0]) for split, unit in found}) == 2
    with pytest.raises(SettingError, match="one document cannot be divided"):
        list(Divider(0.02, seed, "", "keep").divide(units[::2], "x"))
