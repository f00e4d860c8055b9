"""How a reply is compared with the right answer: each gives a number from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Literal

from culm.task.latex import same_value, usual_signs
from culm.task.task import exact

Grade = Literal["exact", "normalized", "number", "math", "contains", "f1"]
# A sign after a word or a number is a dash: `3-5`, `covid-19`.
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def grade(by: Grade, answer: str, reply: str) -> float:
    """The score of a reply."""
    match by:
        case "exact":
            return exact(answer, reply)
        case "normalized":
            return float(normalized(answer) == normalized(reply))
        case "number":
            return number(answer, reply)
        case "math":
            return float(same_value(boxed(answer), boxed(reply)))
        case "contains":
            return float(normalized(answer) in normalized(reply))
        case "f1":
            return f1(answer, reply)


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and further white space (SQuAD, 1606.05250)."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    words = re.sub(r"\b(a|an|the)\b", " ", bare).split()
    # What consists of articles or of punctuation keeps them: the choice A is not the choice "".
    return " ".join(words or bare.split() or text.split())


def f1(answer: str, reply: str) -> float:
    """Of normalised words, as SQuAD measures it."""
    wanted, given = normalized(answer).split(), normalized(reply).split()
    if not wanted or not given:
        return float(wanted == given)
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given))


def number(answer: str, reply: str) -> float:
    """Whether the final numbers are equal: that after the last `####`, else the last one."""
    wanted, given = last_number(answer), last_number(reply)
    return float(wanted is not None and wanted == given)


def last_number(text: str) -> Decimal | None:
    """The final answer of a text as GSM8K writes it; None if there is none."""
    text = usual_signs(text).replace(r"\$", "$")
    found = NUMBER.findall(text.rpartition("####")[2]) or NUMBER.findall(text)
    try:
        return Decimal(re.sub("[$,]", "", found[-1])) if found else None
    except InvalidOperation:
        return None


def boxed(text: str) -> str:
    r"""What is in the last \boxed{...} or \fbox{...}; else what a closing sentence states, or all.

    >>> boxed(r"So it is $\boxed{\frac{1}{2}}$.")      # \frac{1}{2}
    """
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        stated = re.findall(r"(?:answer is|answer:)\s*(.+?)\s*\.?\s*(?:\n|$)", text, re.IGNORECASE)
        return stated[-1] if stated else text.strip()
    rest = text[start:].partition("{")
    if not rest[1]:
        return text[start:].partition(" ")[2].split("$")[0].strip()
    depth = 1
    for place, letter in enumerate(rest[2]):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return rest[2][:place].strip()
    return rest[2].strip()
