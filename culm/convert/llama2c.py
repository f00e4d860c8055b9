"""Checkpoints of llama2.c (version 0) and its tokenizer files.

    seven int32: width, hidden, layers, heads, kv_heads, vocabulary, context
    fp32: embedding; of all layers: attention norm, q, k, v, out, mlp norm, gate, down, up;
          final norm; two rotary tables; the head, if the vocabulary was written as negative

Rotary pairs are neighbours there, so the rows of q and k are permuted to our half-split layout.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import processors
from torch import Tensor

from culm.config import SettingError, parse
from culm.convert.rules import half_split
from culm.convert.weights import assemble
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.rows import check_vocabulary
from culm.tokenizer.sentencepiece import SPACE, merged_by_score
from culm.tokenizer.tokenizer import Tokenizer

HEADER = struct.Struct("<7i")
SPECIALS = ("<unk>", "<s>", "</s>")
LARGEST = 1 << 30  # largest number in a header that is accepted


def load(
    path: str | Path, tokenizer: str | Path, device: torch.device | str = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """The model in a `.bin` file, with the tokenizer in another.

    Raises:
        SettingError: a file is missing, truncated, or of another format.
    """
    path, tokenizer = Path(path), Path(tokenizer)
    config = _config(path)
    model = assemble(config, _weights(path, config), str(path), device)
    own = read_tokenizer(tokenizer, config.vocabulary)
    check_vocabulary(own, config.vocabulary, path)
    return model, own


def _config(path: Path) -> TransformerConfig:
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise SettingError(f"{path}: truncated: {len(head)} bytes are not a llama2.c checkpoint")
    numbers = HEADER.unpack(head)
    width, hidden, layers, heads, kv_heads, vocabulary, context = numbers
    if not all(0 < abs(number) < LARGEST for number in numbers) or min(*numbers[:5], context) < 0:
        raise SettingError(
            f"{path}: not a llama2.c checkpoint (version 0); it starts with {numbers}"
        )
    values = {
        "vocabulary": abs(vocabulary),
        "width": width,
        "layers": layers,
        "context": context,
        "attention": {"kind": "gqa", "heads": heads, "kv_heads": kv_heads},
        "mlp": {"kind": "swiglu", "hidden": hidden},
        "tied": vocabulary > 0,
    }
    return parse(TransformerConfig, values, str(path))


def _parts(config: TransformerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parts after the header, in order; `#` stands for all layers."""
    attention, mlp, width = config.attention[0], config.mlp[0], config.width
    dim, hidden = attention.dim(width), mlp.inner(width)
    rows, kv_rows = attention.heads * dim, (attention.kv_heads or attention.heads) * dim
    yield "embed", (config.vocabulary, width)
    yield "blocks.#.attention_norm", (width,)
    yield "blocks.#.attention.q", (rows, width)
    yield "blocks.#.attention.k", (kv_rows, width)
    yield "blocks.#.attention.v", (kv_rows, width)
    yield "blocks.#.attention.out", (width, rows)
    yield "blocks.#.mlp_norm", (width,)
    yield "blocks.#.mlp.gate", (hidden, width)
    yield "blocks.#.mlp.down", (width, hidden)
    yield "blocks.#.mlp.up", (hidden, width)
    yield "norm", (width,)
    yield "rotary tables", (2, config.context, dim // 2)
    if not config.tied:
        yield "head", (config.vocabulary, width)


def _weights(path: Path, config: TransformerConfig) -> Iterator[tuple[str, Tensor]]:
    parts = [(n, (config.layers, *shape) if "#" in n else shape) for n, shape in _parts(config)]
    sizes = [int(np.prod(shape, dtype=object)) for _, shape in parts]
    needed, size = HEADER.size + 4 * sum(sizes), path.stat().st_size
    if size != needed:
        what = "truncated" if size < needed else "too long for its header"
        raise SettingError(f"{path}: {what}: {size} bytes where {needed} are expected")
    attention = config.attention[0]
    heads = {"q": attention.heads, "k": attention.kv_heads or attention.heads}
    content = np.memmap(path, np.dtype("<f4"), "r", HEADER.size)
    start = 0
    for (name, shape), length in zip(parts, sizes, strict=True):
        numbers = content[start : start + length].reshape(shape)
        start += length
        if name == "rotary tables":
            continue
        for layer in range(config.layers if "#" in name else 1):
            copied = np.array(numbers[layer] if "#" in name else numbers, dtype=np.float32)
            tensor, kind = torch.from_numpy(copied), name.rpartition(".")[2]
            tensor = half_split(tensor, heads[kind]) if kind in heads else tensor
            yield f"{name.replace('#', str(layer))}.weight", tensor


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The SentencePiece vocabulary that llama2.c writes: a score and the bytes of each token.

    Encodes as llama2.c does: a space before the text, bytes for unknown characters, and always the
    merge whose token has the highest score.
    """
    tokens, scores = _read_tokens(path, vocabulary)
    ids = {token: index for index, token in enumerate(tokens)}
    text = range(len(SPECIALS), len(tokens))
    inner = merged_by_score(ids, {tokens[token]: scores[token] for token in text}, "<unk>")
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens(list(SPECIALS))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    # Documents start with <s> and do not end with </s>, so the next <s> ends a document.
    return Tokenizer(inner, names, stops=[1])


def _read_tokens(path: Path, vocabulary: int) -> tuple[list[str], list[float]]:
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    content, place = path.read_bytes(), 4  # the first number is the longest token's length
    tokens: list[str] = []
    scores: list[float] = []
    try:
        for _ in range(vocabulary):
            score, length = struct.unpack_from("<fi", content, place)
            place += 8 + length
            if length < 0 or place > len(content) or math.isnan(score):
                raise struct.error
            tokens.append(content[place - length : place].decode().replace(" ", SPACE))
            scores.append(score)
    except (struct.error, UnicodeDecodeError):
        count = f"token {len(tokens)} of {vocabulary} cannot be read"
        raise SettingError(f"{path}: truncated or not a llama2.c tokenizer: {count}") from None
    tokens[: len(SPECIALS)] = SPECIALS  # the file has line ends around them
    if len(set(tokens)) < len(tokens):
        raise SettingError(f"{path}: not a llama2.c tokenizer: it contains a token twice")
    return tokens, scores
