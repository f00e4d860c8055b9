"""The tokenizer as llama.cpp reads it out of a GGUF file."""

from __future__ import annotations

import json
from typing import Any

import gguf
from gguf import TokenType

from culm.config import SettingError
from culm.tokenizer.fast import GPT2
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary
from culm.tokenizer.train import PATTERN

_REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
# llama.cpp holds the rules that split text into words in its code; a file only names one.
NAMES = {
    PATTERN: "qwen2",
    _SHORT + _REST % r"\p{N}": "qwen2",
    _SHORT + _REST % r"\p{N}{1,3}": "llama-bpe",
    GPT2: "gpt-2",
}
# A vocabulary of bytes merges nothing, but llama.cpp insists on a list: no text gives this pair.
NO_MERGES = ["<none> <none>"]


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Write a byte-level BPE tokenizer for a model with so many rows in its embedding.

    Raises:
        SettingError: it is of another kind, or splits text by a rule that llama.cpp does not know.
    """
    check_vocabulary(tokenizer, rows, "model.vocabulary")
    text = tokenizer.json
    parts = json.loads(text)
    merges = [" ".join(pair) for pair in parts["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_rule(parts, bool(merges)))
    tokens, types = _tokens(parts, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges or NO_MERGES)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_eot_token_id(tokenizer.end_of_turn)
    writer.add_pad_token_id(tokenizer.end_of_text)
    writer.add_bos_token_id(tokenizer.start[0] if tokenizer.start else tokenizer.end_of_text)
    writer.add_add_bos_token(bool(tokenizer.start))
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)
    about = {
        "settings": {**tokenizer.settings, "end_of_text_id": tokenizer.end_of_text},
        "stop_ids": sorted(tokenizer.stop_ids),
    }
    writer.add_string("tokenizer.huggingface.json", text)
    writer.add_string("culm.tokenizer", json.dumps(about))


def _rule(parts: dict[str, Any], merging: bool) -> str:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    match parts["pre_tokenizer"]:
        case {"type": "Sequence", "pretokenizers": [{"pattern": {"Regex": pattern}}, last]}:
            pass
        case {"type": "ByteLevel"} as last:
            pattern = GPT2
        case _:
            last, pattern = {}, ""
    plain = parts["normalizer"] is None and parts["model"]["type"] == "BPE"
    if not plain or not byte_level.items() <= last.items():
        raise SettingError("tokenizer: only byte-level BPE can be written to GGUF")
    if merging and pattern not in NAMES:
        raise SettingError(f"tokenizer: llama.cpp has no rule that splits text by {pattern!r}")
    return NAMES.get(pattern, "gpt-2")


def _tokens(parts: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """The names and types of all ids; rows of the embedding without a token are unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    for name, token in parts["model"]["vocab"].items():
        tokens[token], types[token] = name, TokenType.NORMAL
    for added in parts["added_tokens"]:
        special = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], special
    return tokens, types
