"""How text is split into words, by name and by an own expression."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from culm.tokenizer.patterns import CL100K, GPT2, NAMES, QWEN2, words_of
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

TEXT = "it's 12345 and 12345, 12345\n" * 60


def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.bytes_of(id) for id in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pattern", "digits", "longest"),
    [("qwen2", None, 1), ("qwen2", "grouped", 3), ("cl100k", None, 3), ("llama3", "single", 1),
     ("gpt2", None, 5), ("gpt2", "single", 1), ("gpt2", "grouped", 3), (r"\p{L}+", "single", 1)],
)  # fmt: skip
def test_digits(pattern: str, digits: str | None, longest: int) -> None:
    tokenizer = BPE(vocabulary=330, pattern=pattern, digits=digits).build([TEXT])
    found = [len(piece.strip()) for piece in pieces(tokenizer, " 12345")]
    assert max(found) == longest


def test_named_patterns() -> None:
    assert words_of("gpt2") == (GPT2,)
    assert words_of("qwen2", "single") == (QWEN2,) != words_of("qwen2", "grouped")
    assert words_of("cl100k") == words_of("llama3") == (CL100K,)
    assert words_of("a+", "single") == (r"\p{N}", "a+")


@pytest.mark.parametrize("pattern", [*NAMES, r"\w+", "[a-z!', ]+", "b+"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=40))
def test_text_between_matches_is_kept(pattern: str, text: str) -> None:
    """tiktoken skips what an expression does not match; here nothing may be lost."""
    tokenizer = BPE(vocabulary=300, pattern=pattern).build([TEXT])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == tokenizer._plain.encode(text, add_special_tokens=False).ids


def test_an_own_pattern_is_saved(tmp_path: Path) -> None:
    tokenizer = BPE(vocabulary=300, pattern="[a-z ]+").build([TEXT])
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    # What a corpus of dialogues was prepared with is what a resumed run reads.
    assert again.template_fingerprint == tokenizer.template_fingerprint
    with pytest.raises(ValidationError, match="not a regular expression"):
        BPE(pattern="(a")
    with pytest.raises(ValidationError, match="did you mean 'gpt2'"):
        BPE(pattern="gpt-2")


def test_special_and_reserved_tokens() -> None:
    plain = BPE(vocabulary=300, chat=False, specials=("<a>",), reserved=2).build([TEXT])
    assert plain.specials == {
        "<|endoftext|>": 0, "<a>": 1, "<|reserved_0|>": 2, "<|reserved_1|>": 3,
    }  # fmt: skip
    assert plain.template is None
    assert plain.vocabulary <= 300
    with pytest.raises(ValidationError, match="at least 262"):
        BPE(vocabulary=261)
    with pytest.raises(ValidationError, match="a name is empty"):
        BPE(specials=("",))
