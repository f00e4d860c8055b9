"""The tokenizer's metadata in a GGUF file, with the type of each value checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from gguf import TokenType

from culm.config import SettingError
from culm.convert.gguf.words import RULES, SplitRule
from culm.log import say
from culm.tokenizer.ends import meant

# Names at which llama.cpp stops, whatever their type in the file: a file lists no ends.
STOPS = {
    "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "<|end|>", "<|im_end|>",
    "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]",
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_utterance>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
}  # fmt: skip
# It also stops at the marks between files of code: the token of the key, or the first such name.
FILE_MARKS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
TEXT = (TokenType.NORMAL, TokenType.USER_DEFINED)
# Keys under `tokenizer.ggml`: those that are read, here or with the generation settings.
READ = frozenset(
    "model pre tokens token_type scores merges bos_token_id eos_token_id eot_token_id eom_token_id "
    "unknown_token_id padding_token_id cls_token_id seperator_token_id fim_pad_token_id "
    "fim_rep_token_id fim_sep_token_id add_bos_token add_eos_token add_space_prefix "
    "normalizer.lowercase normalizer.strip_accents suppress_tokens".split()
)
# Those that change no ids of a text: of pairs, of gaps in code, of kinds that are not read.
NEUTRAL = frozenset(
    "token_type_count mask_token_id add_sep_token fim_pre_token_id fim_suf_token_id "
    "fim_mid_token_id prefix_token_id suffix_token_id middle_token_id remove_extra_whitespaces "
    "precompiled_charsmap".split()
)


def stops_of(names: Mapping[int, str], given: Mapping[str, int]) -> set[int]:
    """The ids at which llama.cpp stops. names: of all ids; given: ids by their purpose."""
    ids = {name: id for id, name in names.items()}
    marks = (
        next((ids[name] for name in marks if name in ids), None)
        for key, marks in FILE_MARKS.items()
        if key not in given
    )
    known = (ids[name] for name in STOPS if name in ids)
    found = {id for id in (*given.values(), *known, *marks) if id is not None}
    kept = set(meant([names[id] for id in found]))
    return {id for id in found if names[id] in kept}


class Token(NamedTuple):
    """One entry of the vocabulary; score: the highest is merged first."""

    id: int
    name: str
    type: int
    score: float


class Metadata:
    """The keys under `tokenizer.ggml`.

    fields: all metadata of a file, from `header.read`. source: its path.
    """

    def __init__(self, fields: Mapping[str, Any], source: object) -> None:
        self.fields, self.source = fields, source

    def refused(self, name: str, what: str) -> SettingError:
        """An error with the file, the key, the problem and what to do."""
        remedy = "import this model from its Hugging Face folder"
        return SettingError(f"{self.source}: tokenizer.ggml.{name}: {what}; {remedy}")

    def refuse_unknown(self) -> None:
        """SettingError if a key is not known and switched on: it may change the ids of a text."""
        for key, value in self.fields.items():
            name = key.removeprefix("tokenizer.ggml.")
            if name != key and name not in READ | NEUTRAL and value:
                raise self.refused(name, f"{str(value)[:40]!r} is not known here")

    def get(self, name: str, form: type) -> Any:
        """A value, or None; a flag is not a number."""
        value = self.fields.get(f"tokenizer.ggml.{name}")
        if value is not None and type(value) is not form:
            raise self.refused(name, f"{str(value)[:40]!r} is not a {form.__name__}")
        return value

    def array(self, name: str, form: type) -> list[Any]:
        """A list, empty if it is in the file and has no values; a part that is missing is refused.

        Raises:
            SettingError: it is missing, or contains another type.
        """
        values = self.get(name, list)
        if values is None:
            raise self.refused(name, "it is missing")
        if any(type(value) is not form for value in values):
            raise self.refused(name, f"it contains other types than {form.__name__}")
        return values

    @cached_property
    def tokens(self) -> list[Token]:
        """All used tokens."""
        names = self.array("tokens", str)
        types = self._per_token("token_type", int, int(TokenType.NORMAL), len(names))
        scores = self._per_token("scores", float, 0.0, len(names))
        for key, values in (("token_type", types), ("scores", scores)):
            if len(values) != len(names):
                raise self.refused(key, f"{len(values):,} values for {len(names):,} tokens")
        rows = zip(names, types, scores, strict=True)
        stops = {names[id] for id in stops_of(dict(enumerate(names)), {})}
        found = [
            Token(id, name, TokenType.CONTROL if name in stops else type, score)
            for id, (name, type, score) in enumerate(rows)
            if name and type != TokenType.UNUSED
        ]
        if not found:
            raise self.refused("tokens", "the list is empty")
        if len({token.name for token in found}) < len(found):
            raise self.refused("tokens", "a token occurs twice")
        return found

    def _per_token(self, name: str, form: type, default: Any, count: int) -> list[Any]:
        """A value for each token; the file may lack the list where llama.cpp needs none.

        Raises:
            SettingError: a vocabulary that merges by score has no scores.
        """
        needed = name == "scores" and self.get("model", str) == "llama"
        if needed or self.get(name, list) is not None:
            return self.array(name, form)
        if name == "token_type":
            missing = f"{self.source}: tokenizer.ggml.token_type is missing"
            say(f"{missing}; every token is read as text, as in llama.cpp")
        return [default] * count

    @cached_property
    def stops(self) -> list[int]:
        """The ids at which llama.cpp stops."""
        given = {key: self.id(key) for key in ("eos", "eot", "eom", *FILE_MARKS)}
        return sorted(stops_of(self.names, {k: id for k, id in given.items() if id is not None}))

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each id."""
        return {token.id: token.name for token in self.tokens}

    @cached_property
    def rule(self) -> SplitRule:
        """How byte-level BPE splits text into words."""
        name = self.get("pre", str)
        if name is None:
            say(f"{self.source}: tokenizer.ggml.pre is missing; using default, as llama.cpp does")
            name = "default"
        if name not in RULES:
            raise self.refused("pre", f"the rule {name!r} to split text is not known here")
        return RULES[name]

    def id(self, name: str, default: int | None = None) -> int | None:
        """The id of a token with a purpose."""
        id = self.get(f"{name}_token_id", int)
        if id is not None and id not in self.names:
            raise self.refused(f"{name}_token_id", f"{id} is not a token")
        return default if id is None else id

    def flag(self, name: str, default: bool) -> bool:
        """A switch, with a default."""
        value = self.get(name, bool)
        return default if value is None else bool(value)
