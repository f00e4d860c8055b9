"""What a GGUF file says of its tokenizer: each value has the type that belongs to its key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from gguf import TokenType

from culm.config import SettingError
from culm.convert.gguf.words import RULES, SplitRule
from culm.log import say

# Tokens at which llama.cpp stops, whatever their type is said to be.
STOPS = {
    "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "<|end|>", "<|im_end|>",
    "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]",
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_utterance>", "<|tool_response>",
}  # fmt: skip
TEXT = (TokenType.NORMAL, TokenType.USER_DEFINED)


class Token(NamedTuple):
    """One entry of the vocabulary; score: for merging, the best goes first."""

    id: int
    name: str
    type: int
    score: float


class Metadata:
    """The keys under `tokenizer.ggml`.

    fields: all metadata of a file, as `gguf_header.read` gives them. source: its path.
    """

    def __init__(self, fields: Mapping[str, Any], source: object) -> None:
        self.fields, self.source = fields, source

    def refused(self, name: str, what: str) -> SettingError:
        """To be raised: the file, the key, what is wrong, and what to do."""
        remedy = "import this model from its Hugging Face folder"
        return SettingError(f"{self.source}: tokenizer.ggml.{name}: {what}; {remedy}")

    def get(self, name: str, form: type) -> Any:
        """A value, or None; a flag is no number."""
        value = self.fields.get(f"tokenizer.ggml.{name}")
        if value is not None and type(value) is not form:
            raise self.refused(name, f"{str(value)[:40]!r} is no {form.__name__}")
        return value

    def array(self, name: str, form: type) -> list[Any]:
        """A list, empty where there is none."""
        values = self.get(name, list) or []
        if any(type(value) is not form for value in values):
            raise self.refused(name, f"it does not hold {form.__name__} alone")
        return values

    @cached_property
    def tokens(self) -> list[Token]:
        """All tokens that are used."""
        names = self.array("tokens", str)
        types = self.array("token_type", int) or [int(TokenType.NORMAL)] * len(names)
        scores = self.array("scores", float) or [0.0] * len(names)
        for key, values in (("token_type", types), ("scores", scores)):
            if len(values) != len(names):
                raise self.refused(key, f"there are {len(values):,} for {len(names):,} tokens")
        rows = zip(names, types, scores, strict=True)
        found = [
            Token(id, name, TokenType.CONTROL if name in STOPS else type, score)
            for id, (name, type, score) in enumerate(rows)
            if name and type != TokenType.UNUSED
        ]
        if not found:
            raise self.refused("tokens", "there are none")
        if len({token.name for token in found}) < len(found):
            raise self.refused("tokens", "some token is there twice")
        return found

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each id."""
        return {token.id: token.name for token in self.tokens}

    @cached_property
    def rule(self) -> SplitRule:
        """How byte-level BPE splits text into words."""
        name = self.get("pre", str)
        if name is None:
            say(f"{self.source}: tokenizer.ggml.pre is missing; taken as llama.cpp does: default")
            name = "default"
        if name not in RULES:
            raise self.refused("pre", f"a rule {name!r} to split text is not known here")
        return RULES[name]

    def id(self, name: str, default: int | None = None) -> int | None:
        """The id of a token with a purpose."""
        id = self.get(f"{name}_token_id", int)
        if id is not None and id not in self.names:
            raise self.refused(f"{name}_token_id", f"{id} is no token")
        return default if id is None else id

    def flag(self, name: str, default: bool) -> bool:
        """A switch, and what it is where the file is silent."""
        value = self.get(name, bool)
        return default if value is None else bool(value)
