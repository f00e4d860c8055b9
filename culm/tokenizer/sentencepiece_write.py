"""`.model` files of SentencePiece, written from a tokenizer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from culm.config import SettingError
from culm.tokenizer.sentencepiece import BYTES, SPACE
from culm.tokenizer.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    EXTRA_SPACES,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    proto_class,
)
from culm.tokenizer.tokenizer import Tokenizer

_BYTES = frozenset(BYTES)


def to_model(tokenizer: Tokenizer) -> bytes:
    """The `.model` file with the ids of this tokenizer.

    Raises:
        SettingError: it is not one of SentencePiece's kinds.
    """
    parts = json.loads(tokenizer.json)
    model, added = parts["model"], {t["id"]: t for t in parts["added_tokens"]}
    steps = _steps(parts)
    if parts["pre_tokenizer"] is not None or steps is None:
        raise SettingError(
            "tokenizer: only unigram, and BPE with bytes for unknown characters, can be written as "
            "a .model of SentencePiece"
        )
    proto, ids = proto_class()(), _ids(model)
    unknown = model["unk_id"] if model["type"] == "Unigram" else ids.get(model["unk_token"])
    names = {id: name for name, id in ids.items()} | {id: t["content"] for id, t in added.items()}
    scores = _scores(model)
    for id in range(tokenizer.vocabulary):
        kind = UNUSED if id not in names else BYTE if names[id] in _BYTES else NORMAL
        if id in added:
            kind = CONTROL if added[id]["special"] else USER_DEFINED
        name = names.get(id, f"<unused{id}>")
        kind = UNKNOWN if id == unknown else kind
        proto.pieces.add(piece=name, score=scores.get(name, 0.0), type=kind)
    spec, normal = proto.trainer_spec, proto.normalizer_spec
    spec.model_type = UNIGRAM if model["type"] == "Unigram" else BPE
    spec.vocab_size, spec.eos_piece = tokenizer.vocabulary, names[tokenizer.end_of_text]
    spec.byte_fallback = BYTE in {piece.type for piece in proto.pieces}
    begin = tokenizer.begin
    spec.unk_id, spec.eos_id = -1 if unknown is None else unknown, tokenizer.end_of_text
    spec.bos_id, spec.pad_id = -1 if begin is None else begin, -1
    normal.precompiled_charsmap, normal.remove_extra_whitespaces, normal.add_dummy_prefix = steps
    normal.name = "user_defined" if steps[0] else "identity"
    return bytes(proto.SerializeToString())


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {name: id for id, (name, _) in enumerate(model["vocab"])}
    return dict(model.get("vocab", {}))


def _scores(model: Mapping[str, Any]) -> dict[str, float]:
    """A score for each piece; that of BPE falls with the place of its first merge."""
    if model["type"] == "Unigram":
        return {name: score for name, score in model["vocab"] if name not in _BYTES}
    first: dict[str, float] = {}
    for place, pair in enumerate(model.get("merges", ())):
        first.setdefault("".join(pair), -float(place))
    return first


def _steps(parts: Mapping[str, Any]) -> tuple[bytes, bool, bool] | None:
    """The character map, whether extra spaces are removed, and whether one is added; None if the
    normalisation or the model is not one of SentencePiece.
    """
    model, given = parts["model"], parts["normalizer"] or {}
    if model["type"] != "Unigram" and not (model["type"] == "BPE" and model["byte_fallback"]):
        return None
    steps = list(given.get("normalizers", [given]))
    charsmap, removed, prefix = b"", False, False
    if steps and steps[0].get("type") == "Precompiled":
        charsmap = base64.b64decode(steps.pop(0)["precompiled_charsmap"])
    cut = [
        {"type": "Replace", "pattern": {"Regex": one}, "content": other}
        for one, other in EXTRA_SPACES
    ]
    if steps[: len(cut)] == cut:
        removed, steps = True, steps[len(cut) :]
    if steps and steps[0] == {"type": "Prepend", "prepend": SPACE}:
        prefix, steps = True, steps[1:]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return (charsmap, removed, prefix) if steps == [spaces] else None
