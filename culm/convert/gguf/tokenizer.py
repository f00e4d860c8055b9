"""Write the tokenizer into a GGUF file in llama.cpp's form, and read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import tokenizers
from gguf import TokenType

from culm.config import SettingError
from culm.convert.gguf.metadata import stops_of
from culm.convert.gguf.sampling import add_generation
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.convert.gguf.words import NAMES
from culm.log import say
from culm.tokenizer.patterns import GPT2
from culm.tokenizer.rows import check_vocabulary, refuse_words
from culm.tokenizer.sentencepiece import BYTES, SPACE, splits
from culm.tokenizer.tokenizer import Tokenizer

# A vocabulary of bytes has no merges, but llama.cpp needs a list: this pair never occurs.
NO_MERGES = ["<none> <none>"]
OWN = ("tokenizer.huggingface.json", "culm.tokenizer")  # the full tokenizer, and our settings


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Write the tokenizer of a model with this many rows in its embedding.

    Byte-level BPE becomes a vocabulary of kind `gpt2`; BPE by score with bytes for unknown
    characters, as in SentencePiece, becomes one of kind `llama`. NFC normalisation is omitted, as
    llama.cpp has none: text that is not in NFC gets other ids there. The library's Metaspace adds
    no space before a text that starts with one, and none after special tokens; llama.cpp does.

    Raises:
        SettingError: llama.cpp would give other ids.
    """
    check_vocabulary(tokenizer, rows, "model.vocabulary")
    refuse_words(tokenizer, "llama.cpp")
    parts = json.loads(tokenizer.json)
    model = parts["model"]
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(name) for name in odd):
        raise SettingError("tokenizer: only BPE can be written to GGUF")
    names, types = _tokens(parts, rows)
    writer.add_token_list(names)
    writer.add_token_types(types)
    if model["byte_fallback"]:
        _add_scored(writer, parts, names, types)
    else:
        _add_byte_level(writer, parts)
    _add_ends(writer, tokenizer, names)
    add_generation(writer, tokenizer)
    template = tokenizer.settings.get("chat_template") or tokenizer.template
    if template is not None:
        writer.add_chat_template(template)
    about = {
        "settings": {**tokenizer.settings, "end_of_text_id": tokenizer.end_of_text},
        "stop_ids": sorted(tokenizer.stop_ids),
        "generation": tokenizer.generation,
    }
    for key, text in zip(OWN, (tokenizer.json, json.dumps(about)), strict=True):
        writer.add_string(key, text)


def _add_ends(writer: gguf.GGUFWriter, tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Write the begin token and the ends; names: of all ids.

    The format has room for three ends (of a text, a turn, a message), and llama.cpp also stops at
    names that it knows. A line says where that differs from the stops of the tokenizer.
    """
    text, stops, every = tokenizer.end_of_text, tokenizer.stop_ids, dict(enumerate(names))
    ends = {"eos": text, "eot": tokenizer.end_of_turn}
    rest = sorted(stops - stops_of(every, ends))
    if ends["eot"] == text and rest:
        ends["eot"] = rest.pop(0)
    if rest:
        ends["eom"] = rest.pop(0)
    for key, id in ends.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", id)
    there = stops_of(every, ends)
    differing = {"does not stop": stops - there, "also stops": there - stops}
    for what, ids in differing.items():
        if ids:
            say(f"GGUF: llama.cpp {what} at {', '.join(names[id] for id in sorted(ids))}.")
    pad, begin = tokenizer.generation_config["pad_token_id"], tokenizer.begin
    writer.add_pad_token_id(pad if pad in range(len(names)) else text)
    # Without a key the begin token would be llama.cpp's default, id 11.
    writer.add_bos_token_id(text if begin is None else begin)
    writer.add_add_bos_token(bool(tokenizer.start))


def load_tokenizer(fields: Mapping[str, Any], source: object) -> Tokenizer:
    """The tokenizer in the metadata of a file; exactly the original if Culm wrote it.

    Raises:
        SettingError: naming the file, and the key that is missing or wrong.
    """
    if not all(key in fields for key in OWN):
        return read_tokenizer(fields, source)
    try:
        inner = tokenizers.Tokenizer.from_str(fields[OWN[0]])
        about = json.loads(fields[OWN[1]])
        template = fields.get("tokenizer.chat_template")
        generation = about.get("generation")
        return Tokenizer(inner, about["settings"], template, about["stop_ids"], generation)
    except BaseException as error:  # a panic of its Rust code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        problem = f"{' or '.join(OWN)}: {error}; download or export it again"
        raise SettingError(f"{source}: broken: {problem}") from None


def _tokens(parts: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """The names and types of all ids; rows of the embedding without a token are unused."""
    names = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    single = set(BYTES) if parts["model"]["byte_fallback"] else set()
    for name, token in parts["model"]["vocab"].items():
        names[token] = name
        types[token] = TokenType.BYTE if name in single else TokenType.NORMAL
    for added in parts["added_tokens"]:
        special = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        unknown = added["content"] == parts["model"]["unk_token"]
        names[added["id"]] = added["content"]
        types[added["id"]] = TokenType.UNKNOWN if unknown else special
    return names, types


def _add_byte_level(writer: gguf.GGUFWriter, parts: dict[str, Any]) -> None:
    merges = [" ".join(pair) for pair in parts["model"]["merges"]]
    words = _words(parts["pre_tokenizer"])
    if words is None or (parts["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise SettingError(
            "tokenizer: only byte-level BPE, and BPE with bytes for unknown characters, can be "
            "written to GGUF"
        )
    whole = bool(parts["model"].get("ignore_merges"))
    if merges and (words, whole) not in NAMES:
        rule = " then ".join(map(repr, words)) + (", whole words first" if whole else "")
        raise SettingError(f"tokenizer: llama.cpp has no rule that splits text by {rule}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(NAMES.get((words, whole), "gpt-2"))
    writer.add_token_merges(merges or NO_MERGES)


def _words(splitter: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The expressions that split text into words, in order; None for any other splitter."""
    match splitter:
        case {"type": "Sequence", "pretokenizers": [*cuts, last]}:
            pass
        case last:
            cuts = []
    words = []
    for cut in cuts:
        match cut:
            case {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }:
                words.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                words.append(r"\p{N}")
            case _:
                return None
    match last:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": own}:
            return (*words, GPT2) if own else tuple(words)
    return None


def _add_scored(
    writer: gguf.GGUFWriter, parts: dict[str, Any], names: list[str], types: list[TokenType]
) -> None:
    if types.count(TokenType.BYTE) < len(BYTES):
        raise SettingError("tokenizer: llama.cpp needs a token for each of the 256 bytes")
    prefix = _prefix(parts)
    merges = [tuple(pair) for pair in parts["model"]["merges"]]
    reached = {
        name
        for name, type in zip(names, types, strict=True)
        if type == TokenType.NORMAL or (type == TokenType.USER_DEFINED and SPACE in name)
    }
    known = set(merges)
    for name in reached:
        if unmerged := [pair for pair in splits(name, reached) if pair not in known]:
            raise SettingError(
                f"tokenizer: llama.cpp merges any two tokens that join to a third, so also "
                f"{unmerged[0][0]!r} and {unmerged[0][1]!r}, which this one does not merge"
            )
    scores = _scores(merges)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(name, 0.0) for name in names])
    writer.add_add_space_prefix(prefix)
    if TokenType.UNKNOWN in types:
        writer.add_unk_token_id(types.index(TokenType.UNKNOWN))


def _prefix(parts: dict[str, Any]) -> bool:
    """Whether a space is added before a text; each space must become U+2581."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first = {"type": "Prepend", "prepend": SPACE}
    inside = any(SPACE in name[1:] for name in parts["model"]["vocab"])
    match parts["normalizer"], parts["pre_tokenizer"]:
        case {"type": "Sequence", "normalizers": [one, two]}, None if (one, two) == (first, spaces):
            return True
        case normalizer, None | {"type": "Split", "pattern": {"String": " "}} if (
            normalizer == spaces
        ):
            return False  # no space is left for splitting
        case None, {"type": "Metaspace", "replacement": mark, "prepend_scheme": when, "split": cut}:
            if mark == SPACE and not (cut and inside):
                return bool(when != "never")
    raise SettingError("tokenizer: llama.cpp has no rule for spaces like this one")


def _scores(merges: list[tuple[str, ...]]) -> dict[str, float]:
    """A score for each merged token, higher for earlier merges.

    Tokens whose merges alternate get the same score.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, pair in enumerate(merges):
        first.setdefault("".join(pair), place)
        last["".join(pair)] = place
    scores, level, end = {}, 0, -1
    for name, begin in first.items():
        level -= begin > end
        end = max(end, last[name])
        scores[name] = float(level)
    return scores
