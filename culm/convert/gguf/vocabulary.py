"""The tokenizer of any GGUF file from its metadata; it encodes as llama.cpp does.

`tokenizer.ggml.model` names the kind: `gpt2` is byte-level BPE, `llama` merges by score as
SentencePiece does, `bert` is WordPiece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from gguf import TokenType
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from culm.config import SettingError
from culm.convert.gguf.metadata import TEXT, Metadata
from culm.convert.gguf.sampling import read_generation
from culm.tokenizer.patterns import splitter
from culm.tokenizer.sentencepiece import BYTES, SPACE, merged_by_score
from culm.tokenizer.template_files import DEFAULT, named
from culm.tokenizer.tokenizer import Tokenizer

MARKS = (TokenType.CONTROL, TokenType.UNKNOWN)  # not part of text


def read_tokenizer(fields: Mapping[str, Any], source: object) -> Tokenizer:
    """The tokenizer that the metadata of a file describe.

    fields: all metadata by their keys, from `header.read`. source: the file.

    Raises:
        SettingError: naming the file and the key that is missing, wrong or not supported.
    """
    metadata = Metadata(fields, source)
    metadata.refuse_unknown()
    kind = metadata.get("model", str)
    if kind not in KINDS:
        problem = f"a vocabulary of kind {kind!r} is not read here, only {', '.join(KINDS)}"
        raise metadata.refused("model", problem)
    start, end = _ends(metadata, kind)
    try:
        inner = KINDS[kind](metadata)
        inner.add_tokens(_added(metadata))
        _frame(inner, metadata, start, end)
    except SettingError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise metadata.refused("tokens", f"they give no tokenizer: {error}") from None
    marks = {"bos": start, "eos": end, "pad": metadata.id("padding"), "unk": metadata.id("unknown")}
    settings: dict[str, Any] = {
        f"{key}_token": metadata.names[id] for key, id in marks.items() if id is not None
    }
    templates = _templates(fields, source)
    settings["chat_template"] = named(templates)
    stops, generation = [end, *metadata.stops], read_generation(fields, source)
    try:
        return Tokenizer(
            inner, settings | named(templates), templates.get(DEFAULT), stops, generation
        )
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from None


def _templates(fields: Mapping[str, Any], source: object) -> dict[str, str]:
    """The chat templates by name; the default has none in the file."""
    key = "tokenizer.chat_template"
    names = {key: DEFAULT} | {n: n.removeprefix(f"{key}.") for n in fields if f"{key}." in n}
    found = {name: fields[place] for place, name in names.items() if place in fields}
    if not all(isinstance(text, str) for text in found.values()):
        raise SettingError(f"{source}: {key}: it is not text; remove it")
    return found


def _byte_level(metadata: Metadata) -> tokenizers.Tokenizer:
    ids = {token.name: token.id for token in metadata.tokens}
    pairs = []
    merges = metadata.array("merges", str)
    texts = [token.name for token in metadata.tokens if token.type == TokenType.NORMAL]
    if not merges and max(map(len, texts), default=0) > 1:
        raise metadata.refused("merges", "it is empty, so tokens of several bytes are never used")
    for merge in merges:
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not right:
            raise metadata.refused("merges", f"{merge!r} is not a pair")
        if left in ids and right in ids:  # no other merge ever happens
            if left + right not in ids:
                raise metadata.refused("merges", f"{merge!r} gives no token")
            pairs.append((left, right))
    inner = tokenizers.Tokenizer(models.BPE(ids, pairs, ignore_merges=metadata.rule.whole))
    inner.pre_tokenizer = splitter(*metadata.rule.words)
    inner.decoder = decoders.ByteLevel()
    return inner


def _scored(metadata: Metadata) -> tokenizers.Tokenizer:
    ids = {token.name: token.id for token in metadata.tokens}
    scores = {token.name: token.score for token in metadata.tokens if token.type in TEXT}
    if missing := [name for name in BYTES if name not in ids]:
        raise metadata.refused("tokens", f"byte {missing[0]} has no token")
    return merged_by_score(ids, scores, None, metadata.flag("add_space_prefix", True))


def _word_pieces(metadata: Metadata) -> tokenizers.Tokenizer:
    """A first piece starts with U+2581 in the file, later pieces with ## in the library."""
    unknown = metadata.id("unknown")
    if unknown is None:
        raise metadata.refused("unknown_token_id", "it is missing")
    ids = {_piece(token.name): token.id for token in metadata.tokens}
    inner = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=metadata.names[unknown]))
    lowercase = metadata.flag("normalizer.lowercase", True)  # of this kind alone, in llama.cpp
    strips = metadata.flag("normalizer.strip_accents", lowercase)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strips)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _piece(name: str) -> str:
    if name.startswith("[") and name.endswith("]"):
        return name
    return name[1:] if name.startswith(SPACE) else f"##{name}"


KINDS = {"gpt2": _byte_level, "llama": _scored, "bert": _word_pieces}


def _added(metadata: Metadata) -> list[tokenizers.AddedToken]:
    """Tokens that are matched before text is split; special ones only on request."""
    model = str(metadata.fields.get("general.name")).lower()
    strips = (
        "phi-3" in model or "phi3" in model
    )  # no key says so: llama.cpp also decides by the name
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return [
        tokenizers.AddedToken(
            token.name,
            special=token.type in MARKS,
            normalized=False,
            rstrip=strips and token.name not in kept,
        )
        for token in metadata.tokens
        if token.type in (*MARKS, TokenType.USER_DEFINED)
    ]


def _ends(metadata: Metadata, kind: str) -> tuple[int | None, int]:
    """The ids that start and end a text, with llama.cpp's defaults."""
    defaults: dict[str, tuple[int | None, int | None]] = {
        "llama": (1, 2),
        "bert": (metadata.id("cls"), metadata.id("seperator")),  # spelt like this in the format
    }
    start, end = defaults.get(kind, (None, None))
    start, end = metadata.id("bos", start), metadata.id("eos", end)
    if end not in metadata.names:
        raise metadata.refused("eos_token_id", "no token ends a text")
    return (start if start in metadata.names else None), end


def _frame(inner: tokenizers.Tokenizer, metadata: Metadata, start: int | None, end: int) -> None:
    """Let the library add `start` before a text and `end` after it, if the file says so."""
    kind = metadata.get("model", str)
    starts = metadata.flag("add_bos_token", metadata.rule.start if kind == "gpt2" else True)
    first = [start] if starts and start is not None else []
    last = [end] if metadata.flag("add_eos_token", kind == "bert") else []
    around = {metadata.names[id]: id for id in first + last}
    if around:
        single = [*(metadata.names[id] for id in first), "$A", *(metadata.names[id] for id in last)]
        inner.post_processor = processors.TemplateProcessing(
            single, special_tokens=list(around.items())
        )
