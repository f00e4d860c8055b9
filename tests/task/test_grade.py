"""How replies are compared with answers."""

from decimal import Decimal

import pytest

from culm.task.grade import boxed, f1, grade, last_number, normalized
from culm.task.latex import same_value


def test_normalised_text_is_that_of_squad() -> None:
    assert normalized("The  Cat, and a dog!") == "cat and dog"
    assert grade("normalized", "the Cat", "cat.") == 1
    assert grade("normalized", "cat", "cats") == 0
    assert grade("contains", "Paris", "It is in Paris, I think.") == 1
    assert grade("contains", "Paris", "It is in Rome.") == 0


@pytest.mark.parametrize(
    ("answer", "reply", "score"),
    [("the cat sat", "a cat sat on", 0.8), ("a", "the", 0), ("cat", "", 0), ("cat", "dog", 0),
     ("b b c", "b c c", 2 / 3)],
)  # fmt: skip
def test_f1_counts_shared_words(answer: str, reply: str, score: float) -> None:
    assert f1(answer, reply) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"),
    [("so #### 1,234", "1234"), ("it costs $5.50.", "5.50"), ("3 and 4", "4"), ("-7", "-7"),
     ("#### 8 apples and 9", "9"), ("7 ####", "7"), ("none", None), ("1.000.000", "0"),
     ("x = \u22125", "-5"), ("from 3-5", "5"), ("3\u20135", "5"), ("10 - 15 = -5", "-5"),
     ("1{,}000", "1000"), (r"1\,000", "1000"), (r"-\$18", "-18"),
     (r"\$1,234.50", "1234.50"), ("5%", "5"), ("(2)-7", "7")],
)  # fmt: skip
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    found = last_number(text)
    assert found == (None if number is None else Decimal(number))


def test_numbers_are_compared_as_numbers() -> None:
    assert grade("number", "work <<1+1=2>> #### 2", "The answer is 2.0") == 1
    assert grade("number", "#### 1000", "1,000 dollars") == 1
    assert grade("number", "#### 2", "two") == 0
    assert grade("number", "none", "none") == 0  # a question without a number is never right


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (r"So $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"), (r"\boxed{1} or \boxed{2}", "2"),
        (r"\fbox{3}", "3"), (r"$\boxed 7$", "7"), ("The answer is 12.", "12"), ("x", "x"),
        (r"\boxed{\text{(A)}}", r"\text{(A)}"), (r"\boxed{1", "1"),
    ],
)  # fmt: skip
def test_what_is_in_the_last_box(text: str, inner: str) -> None:
    assert boxed(text) == inner


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (r"\frac12", "0.5"), (r"\dfrac{1}{2}", "1/2"), (r"-\frac{1}{2}", "-0.5"), ("x=5", "5"),
        ("1,000", "1000"), (r"5\text{ cm}", "5"), (r"\sqrt2", r"\sqrt{2}"), (r"10\%", "10"),
        ("(1,2)", "(1, 2)"), (r"\text{even}", "even"), (r"\left(3,\frac{1}{2}\right)",
        r"(3,\frac12)"), (".5", "0.5"), ("90^\\circ", "90"), (r"\$5", "5"), ("5.", "5"),
        ("\u22125", "-5"), ("1{,}000", "1000"), (r"1\,000", "1000"), (r"3\frac{1}{2}", "3.5"),
        (r"-3\frac12", "-7/2"), (r"-\frac{-1}{2}", "1/2"),
    ],
)  # fmt: skip
def test_spellings_of_one_value(ours: str, theirs: str) -> None:
    assert same_value(ours, theirs)
    assert same_value(theirs, ours)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("1/2", "1/3"), ("(1,2)", "(2,1)"), ("12", "1 2 3"), ("1/0", "0"), ("x", "y"), ("", "5"),
     (r"\sqrt{2}", "2"), ("-5", "5"), (r"3\frac12", "31/2"), ("31", "3_1"), ("5", ""),
     ("1", "1/2/3")],
)  # fmt: skip
def test_other_values(ours: str, theirs: str) -> None:
    assert not same_value(ours, theirs)


@pytest.mark.parametrize("by", ["normalized", "contains", "f1"])
@pytest.mark.parametrize(("answer", "reply"), [("A", ""), ("A", "the"), ("A", "C"), ("+", "-")])
def test_an_answer_without_words_is_not_any_reply(by, answer: str, reply: str) -> None:
    assert grade(by, answer, reply) == 0
    assert grade(by, answer, answer) == 1


@pytest.mark.parametrize("reply", ["1e999999999", "-1e999999999", "1" * 9999, "1/1e999999999"])
def test_a_huge_number_is_not_computed(reply: str) -> None:
    assert not same_value("5", reply)
