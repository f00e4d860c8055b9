"""Whether two answers in LaTeX are the same value."""

from __future__ import annotations

import re
from fractions import Fraction

DROPPED = (
    r"\!", r"\,", r"\;", r"\:", r"\ ", r"\left", r"\right", r"\$", "$", r"\%", "%", r"^\circ",
    r"^{\circ}", r"\displaystyle",
)  # fmt: skip
WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm)\{([^{}]*)\}")
MINUS = re.compile("[\u2212\u2010\u2011\u2013\uff0d]")  # what stands for it in typeset texts
DECIMAL = r"\d{1,999}(?:\.\d{0,999})?"  # no exponent: 1e999999999 would be computed
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>\d{{1,999}})?\\frac\{{(?P<above>-?{DECIMAL})\}}\{{(?P<below>-?{DECIMAL})\}}"
    rf"|(?P<first>{DECIMAL})(?:/(?P<second>-?{DECIMAL}))?)"
)


def same_value(answer: str, reply: str) -> bool:
    r"""Whether they are equal after LaTeX's variants of spelling, or as numbers.

    `\dfrac12`, `\frac{1}{2}`, `1/2` and `0.5` are the same; `x=5` is 5; units are left out.
    """
    ours, theirs = plain(answer), plain(reply)
    if ours == theirs:
        return True
    values = value(ours), value(theirs)
    return values[0] is not None and values[0] == values[1]


def usual_signs(text: str) -> str:
    """With one sign for minus, and `1{,}000` and `1\\,000` as 1,000 and 1000."""
    text = MINUS.sub("-", text.replace("{,}", ","))
    return re.sub(r"(?<=\d)\\[,!;: ](?=\d{3}(?!\d))", "", text)


def plain(text: str) -> str:
    """One spelling of what can be spelled in several ways (as MATH does, 2103.03874)."""
    text = usual_signs(text).strip().rstrip(".").replace("\n", "")
    for mark in DROPPED:
        text = text.replace(mark, "")
    text = text.replace(r"\tfrac", r"\frac").replace(r"\dfrac", r"\frac").replace(r"\\", "\\")
    # A unit after the answer; an answer that is all text keeps it.
    text = re.sub(r"(?<=\S)\s*\\text\{\s+[^{}]*\}$", "", text)
    text = WORDS.sub(r"\1", text)
    text = re.sub(r"\\frac\s*(\w)\s*(\w)(?!\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\w)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text.strip()):
        text = text.replace(",", "")
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"^[a-zA-Z]=", "", text)  # x = 5
    return re.sub(r"(?<!\d)\.(\d)", r"0.\1", text)


def value(text: str) -> Fraction | None:
    r"""A number, a fraction of numbers or a mixed number such as `3\frac{1}{2}`; None for
    other text. text: as `plain` gives it.
    """
    found = NUMBER.fullmatch(text)
    if found is None:
        return None
    above, below = found["above"] or found["first"], found["below"] or found["second"] or "1"
    if not Fraction(below):
        return None
    size = Fraction(found["whole"] or 0) + Fraction(above) / Fraction(below)
    return -size if found["sign"] == "-" else size
