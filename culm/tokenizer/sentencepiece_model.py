"""`.model` files of SentencePiece, read into a tokenizer.

The ids are those of the sentencepiece library. The differences:

- The names of control pieces are letters in a text, as in the library; on request they are read.
- User-defined pieces are letters too where a space is added before a text: the library reads them
  at any place, and what follows one would get a space here.
- Of a model that drops spaces or normalises characters, decoding gives the normalised text.
- Decoding leaves out the token for unknown characters; the library writes U+2047.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, processors
from tokenizers.normalizers import Normalizer

from culm.config import SettingError
from culm.files import refuse_pointer
from culm.tokenizer.parts import LEADING
from culm.tokenizer.sentencepiece import merged_by_score, spaced

EXTRA = "install it with: pip install 'culm[tokenizers]'"
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Runs of spaces, and those around a text; those before it come last, see `without_prefix`.
EXTRA_SPACES = ((" {2,}", " "), (r" \z", ""), (LEADING, ""))


def read_model(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer in a `.model` file, and the names of its special tokens by their settings.

    Raises:
        SettingError: it cannot be read, or is of a kind that is not read.
    """
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    refuse_pointer(path)
    return parts_of(path.read_bytes(), path)


def parts_of(content: bytes, source: str | Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As `read_model`, for the content of a file."""
    proto = _parsed(content, source)
    inner = _inner(proto)
    inner.add_tokens(_added(proto))
    return inner, _marks(proto)


def add_begin(inner: tokenizers.Tokenizer, begin: str) -> None:
    """Let the library add the token of this name before every text."""
    inner.post_processor = processors.TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
    )


def proto_class() -> Any:
    """The message of a `.model` file.

    Raises:
        SettingError: sentencepiece is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise SettingError(f"tokenizer: .model files need sentencepiece; {EXTRA}") from None
    module: Any = sentencepiece_model_pb2
    return module.ModelProto


def _parsed(content: bytes, source: str | Path) -> Any:
    """The message, if all that it says can be followed."""
    proto = proto_class()()
    try:
        proto.ParseFromString(content)
    except Exception:  # of protobuf, which is not imported here
        raise SettingError(f"{source}: not a .model file of SentencePiece") from None
    pieces = [piece.piece for piece in proto.pieces]
    problems = {
        "it has no pieces": not pieces,
        "its model_type is neither unigram nor bpe": proto.trainer_spec.model_type
        not in (UNIGRAM, BPE),
        "a piece is in it twice": len(set(pieces)) < len(pieces),
        "it has no piece for unknown characters": UNKNOWN not in {p.type for p in proto.pieces},
        "spaces are at the end of its pieces": proto.trainer_spec.treat_whitespace_as_suffix,
        "spaces are no part of its pieces": not proto.normalizer_spec.escape_whitespaces,
        "some of its pieces are unused": UNUSED in {p.type for p in proto.pieces},
    }
    if wrong := next((problem for problem, there in problems.items() if there), None):
        raise SettingError(f"{source}: {wrong}, and such models are not read")
    return proto


def _inner(proto: Any) -> tokenizers.Tokenizer:
    """The model with its normalisation, without special tokens."""
    ids = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    # Nine digits are all of a float32, and no more are read back exactly from JSON.
    scores = {p.piece: float(f"{p.score:.9g}") for p in proto.pieces if p.type == NORMAL}
    unknown = next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)
    prefix, before = proto.normalizer_spec.add_dummy_prefix, _before(proto.normalizer_spec)
    if proto.trainer_spec.model_type == BPE and not before:
        return merged_by_score(ids, scores, unknown, prefix)
    if proto.trainer_spec.model_type == BPE:
        return spaced(merged_by_score(ids, scores, unknown).model, prefix, before)
    # No text may give a byte by its name: one token of it costs more than its characters.
    never = 8 * min(scores.values(), default=0.0) - 1
    vocabulary = [(piece.piece, scores.get(piece.piece, never)) for piece in proto.pieces]
    model = models.Unigram(vocabulary, ids[unknown], proto.trainer_spec.byte_fallback)
    return spaced(model, prefix, before)


def _before(spec: Any) -> list[Normalizer]:
    """What is normalised before spaces are."""
    steps: list[Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(one), other) for one, other in EXTRA_SPACES]
    return steps


def _marks(proto: Any) -> dict[str, str]:
    """The names of the special tokens by their settings."""
    spec = proto.trainer_spec
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id, "unk": spec.unk_id}
    known = {mark: id for mark, id in ids.items() if 0 <= id < len(proto.pieces)}
    kinds = (CONTROL, UNKNOWN)
    return {
        f"{mark}_token": proto.pieces[id].piece
        for mark, id in known.items()
        if proto.pieces[id].type in kinds
    }


def _added(proto: Any) -> list[AddedToken]:
    special = {CONTROL, UNKNOWN}
    if proto.normalizer_spec.add_dummy_prefix:
        special.add(USER_DEFINED)
    return [
        AddedToken(piece.piece, special=piece.type in special, normalized=False)
        for piece in proto.pieces
        if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
