"""The regular expressions that split text into words before byte-level BPE, by name.

They are those of GPT-2, GPT-4 (cl100k), Llama 3 (the same), and Qwen2, where a digit is a word.
"""

from __future__ import annotations

from typing import Literal

from tokenizers import Regex, pre_tokenizers

from culm.config import did_you_mean

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_QWEN2 = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|"

Digits = Literal["single", "grouped"]
DIGITS: dict[Digits, str] = {"single": r"\p{N}", "grouped": r"\p{N}{1,3}"}

# What is before and after the expression for digits, and that of the model.
_NAMED: dict[str, tuple[str, Digits, str]] = {
    "cl100k": (_GPT4, "grouped", _AFTER),
    "llama3": (_GPT4, "grouped", _AFTER),
    "qwen2": (_QWEN2, "single", _AFTER),
}
NAMES = ("gpt2", *_NAMED)


def checked(pattern: str) -> str:
    """The name of a pattern, or a regular expression.

    Raises:
        ValueError: it is neither.
    """
    if pattern in NAMES:
        return pattern
    if pattern.replace("-", "").isalnum() or not pattern:  # a name, since it would match one word
        raise ValueError(f"{pattern!r} is not the name of a pattern{did_you_mean(pattern, NAMES)}")
    try:
        Regex(pattern)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def words_of(pattern: str, digits: Digits | None = None) -> tuple[str, ...]:
    """The expressions that split text, in order.

    pattern: one of `NAMES`, or an expression. digits: each is a word ("single"), or up to three are
    ("grouped"); None: as the pattern says.
    """
    if pattern in _NAMED:
        before, own, after = _NAMED[pattern]
        return (before + DIGITS[digits or own] + after,)
    word = GPT2 if pattern == "gpt2" else pattern
    return (word,) if digits is None else (DIGITS[digits], word)


CL100K = words_of("cl100k")[0]
QWEN2 = words_of("qwen2")[0]
# Every character is in a match of these, so that nothing of a text is between matches.
COVERING = frozenset((GPT2, *(words_of(name, digits)[0] for name in _NAMED for digits in DIGITS)))


def splitter(*words: str) -> pre_tokenizers.PreTokenizer:
    """Splits text into words by regular expressions, in order, and writes them as bytes."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), behavior="isolated") for each in words),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
