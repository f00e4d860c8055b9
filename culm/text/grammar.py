"""Answers in a given form: JSON of a schema, a regular expression, a context-free grammar.

A form is a text in the language of llguidance (https://github.com/guidance-ai/llguidance), which
computes the tokens that may follow. It needs the extra `grammar`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from culm.engine.constraint import Allowed
from culm.tokenizer.template import WRITTEN
from culm.tokenizer.tokenizer import Tokenizer

MAX_CHARACTERS = 64 << 10  # of a form; larger ones take seconds to compile
KNOWN = 64  # compiled forms that are kept
# As `json.dumps` writes. With free whitespace, a weak model would fill its answer with newlines.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SLASHES = re.compile(r"\\.|/", re.DOTALL)  # those that are escaped, with what escapes them


def of_json(schema: Mapping[str, Any] | bool) -> str:
    """JSON that a schema describes (https://json-schema.org, draft 2020-12, where supported)."""
    return json.dumps({"grammars": [{"json_schema": _styled(schema)}]})


def of_regex(pattern: str) -> str:
    """Text that a regular expression matches from start to end; no look-around."""
    escaped = SLASHES.sub(lambda found: r"\/" if found[0] == "/" else found[0], pattern)
    return of_lark("start: /" + escaped.replace("\n", r"\n") + "/")


def of_choice(texts: Iterable[str]) -> str:
    """One of several texts."""
    return of_lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def of_lark(grammar: str, parts: Mapping[str, Mapping[str, Any] | bool] | None = None) -> str:
    """What a grammar in Lark's syntax gives from `start` on.

    parts: JSON schemas; `@name` in the grammar stands for JSON that one of them describes.
    """
    schemas = [{"name": name, "json_schema": _styled(one)} for name, one in (parts or {}).items()]
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": grammar}, *schemas]})


def after_reasoning(form: str) -> str:
    """The form, after a text up to </think>: for prompts that end with <think>."""
    rules = 'start: reasoning "\\n\\n"? @form\nreasoning[lazy]: /(?s:.*)/ "</think>"\n'
    return with_form(of_lark(rules), form)


def with_form(grammar: str, form: str) -> str:
    """A grammar of `of_lark` in which `@form` stands for another form."""
    first, *rest = json.loads(form)["grammars"]
    outer = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [*outer, {**first, "name": "form"}, *rest]})


def _styled(schema: Mapping[str, Any] | bool) -> dict[str, Any]:
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return {**schema, "x-guidance": JSON_STYLE}


class Grammar:
    """A constraint for one answer.

    The state follows the output that it is asked about, so an answer needs an object of its own.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._said: list[int] = []

    @property
    def failure(self) -> str | None:
        """Why no more can be said about the output, such as a form that became too complex."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else None

    def copy(self) -> Grammar:
        """Another one in the same state."""
        copied = Grammar(self._matcher.deep_copy(), self._vocabulary)
        copied._said = self._said.copy()
        return copied

    def mask(self, output: Sequence[int]) -> Allowed:
        if not self._follow(output) or self._matcher.is_stopped():
            return frozenset()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return frozenset()
        allowed = np.zeros(self._vocabulary, bool)
        known = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        allowed[: len(known)] = known
        return torch.from_numpy(allowed)

    def _follow(self, output: Sequence[int]) -> bool:
        """Go to the state after `output`; False if the form does not allow it, as in a draft."""
        same = len(self._said)
        if list(output[:same]) != self._said:
            pairs = enumerate(zip(self._said, output, strict=False))
            same = next((at for at, (a, b) in pairs if a != b), min(same, len(output)))
            self._matcher.rollback(len(self._said) - same)
            del self._said[same:]
        rest = list(output[same:])
        taken = self._matcher.try_consume_tokens(rest)
        self._said += rest[:taken]
        return bool(taken == len(rest))


class Grammars:
    """Compiles forms for the tokens of one tokenizer.

    vocabulary: rows of the model's head, which may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._known = lru_cache(KNOWN)(self._compile)

    def compile(self, form: str) -> Grammar:
        """A constraint for one answer; takes up to a second, and less for a form of late.

        Raises:
            ValueError: the form is not valid, not supported or too complex; or llguidance is not
                installed.
        """
        if len(form) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(form):,} characters; up to {MAX_CHARACTERS:,} are read")
        return self._known(form).copy()

    def _compile(self, form: str) -> Grammar:
        matcher = _llguidance().LLMatcher(self._tokens, form, log_level=0)
        if matcher.is_error():
            raise ValueError(_in_one_line(matcher.get_error()))
        return Grammar(matcher, self._vocabulary)

    @cached_property
    def _tokens(self) -> Any:
        tokenizer = self._tokenizer
        names = {id: name for name, id in tokenizer.specials.items()}
        # Marks of calls and thoughts are text that an answer writes, also where they are special.
        marks = {id: name.encode() for id, name in names.items() if WRITTEN.fullmatch(name)}
        spelt = [marks.get(id) or tokenizer.bytes_of(id) for id in range(tokenizer.vocabulary)]
        special = sorted(names.keys() - marks.keys())
        for id in special:
            spelt[id] = names[id].encode()
        ends = sorted(tokenizer.stop_ids)
        library = _llguidance()
        return library.LLTokenizer(
            library.TokenizerWrapper(_Tokens(spelt, special, ends[0], tokenizer.encode)),
            n_vocab=self._vocabulary, eos_token=ends,
        )  # fmt: skip


class _Tokens:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int, encode: Any) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


def _in_one_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip(" ^")]
    return "; ".join(lines)[:300] or "it is not valid"


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            "answers in a given form need llguidance: pip install 'culm[grammar]'"
        ) from None
    return llguidance
