"""Exercises of lesson 6a: how answers are compared with the right ones, and how sure we are."""

from __future__ import annotations

import re

from culm.eval import interval
from culm.eval.pass_at_k import pass_at_k as library_pass_at_k
from culm.learn.exercise import Exercise, Mistake
from culm.task import grade


def normalized(text: str) -> str:
    return grade.normalized(text)


def normalized_answer(text: str) -> str:
    bare = re.sub(r"[^\w\s]|_", "", text.lower())
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the"))


def last_number(text: str) -> float | None:
    found = grade.last_number(text)
    return None if found is None else float(found)


def last_number_answer(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def _first_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[0].replace(",", "")) if found else None


def _number_without_commas(text: str) -> float | None:
    found = re.findall(r"-?\d+(?:\.\d+)?", text)
    return float(found[-1]) if found else None


def wilson(right: int, items: int) -> tuple[float, float]:
    found = interval.wilson(right, items)
    return found.low, found.high


def wilson_answer(right: int, items: int) -> tuple[float, float]:
    z, share = 1.96, right / items
    centre = share + z * z / (2 * items)
    spread = z * (share * (1 - share) / items + z * z / (4 * items**2)) ** 0.5
    scale = 1 + z * z / items
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _normal_interval(right: int, items: int) -> tuple[float, float]:
    share = right / items
    spread = 1.96 * (share * (1 - share) / items) ** 0.5
    return share - spread, share + spread


def pass_at_k(samples: int, right: int, k: int) -> float:
    return library_pass_at_k(samples, right, k)


def pass_at_k_answer(samples: int, right: int, k: int) -> float:
    missed = 1.0
    for place in range(k):
        missed *= max(0, samples - right - place) / (samples - place)
    return 1 - missed


EXERCISES = (
    Exercise(
        "grading.normalized",
        "Drop case, punctuation, articles and further white space.",
        normalized,
        lambda g: [("The  Eiffel Tower!",), ("an apple, a day",), ("42",)],
        normalized_answer,
        (
            Mistake("drop a, an and the.", lambda text: re.sub(r"[^\w ]", "", text.lower())),
            Mistake(
                "drop case.",
                lambda text: " ".join(
                    w for w in re.sub(r"[^\w ]", "", text).split() if w not in ("a", "an", "the")
                ),
            ),
        ),
    ),
    Exercise(
        "grading.last_number",
        "Give the last number of a text without the commas of thousands, or None.",
        last_number,
        lambda g: [("3 + 4 makes 7.",), ("He pays $1,250.50",), ("It is -3",), ("no idea",)],
        last_number_answer,
        (
            Mistake("the working comes first, the answer last.", _first_number),
            Mistake("1,250 is one number.", _number_without_commas),
        ),
    ),
    Exercise(
        "grading.wilson",
        "Give both ends of Wilson's 95 % interval (z = 1.96) of a share.",
        wilson,
        lambda g: [(9, 10), (0, 20), (50, 100), (20, 20)],
        wilson_answer,
        (
            Mistake(
                "near 0 and 1 this one is too narrow; use Wilson's score interval.",
                _normal_interval,
            ),
        ),
    ),
    Exercise(
        "grading.pass_at_k",
        "Give the probability that at least one of k of these samples is right, chosen without "
        "replacement.",
        pass_at_k,
        lambda g: [(10, 3, 5), (10, 3, 1), (5, 0, 2), (4, 3, 2)],
        pass_at_k_answer,
        (
            Mistake(
                "this is biased: no sample is chosen twice.",
                lambda samples, right, k: 1 - (1 - right / samples) ** k,
            ),
            Mistake("this is k = 1.", lambda samples, right, k: right / samples),
        ),
    ),
)  # fmt: skip
