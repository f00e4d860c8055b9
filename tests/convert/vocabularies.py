"""Tokenizers to write to GGUF, texts to try them on, and llama.cpp's reading of a file."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from culm.convert.gguf import header as gguf_header
from culm.convert.gguf.tokenizer import OWN, add_tokenizer
from culm.convert.gguf.words import RULES
from culm.tokenizer.alphabet import BYTES as ALPHABET
from culm.tokenizer.chat import TEMPLATE
from culm.tokenizer.patterns import splitter
from culm.tokenizer.sentencepiece import BYTES, merged_by_score
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

PARTS = [
    "Hello", " world", "camelCase", " HELLO", "don't", "'LL", "'s", " ", "  ", "     ", "\n",
    "\n\n", "\t", "\r\n", "1", "12", "3456789", " 99", "É", "é", " Été", "Москва", "東京",
    "こんにちは", "한국어", "🙂", "👨‍👩‍👧", "!", "?!", "...", " =>", "$", "^~", "|`", "_x", "-",
    "\\", "/", "</s>", "<s>", "ﬁ", "ß", "\u00a0", "\u3000", "مرحبا", "ไทย", "\u200b", "²",
    "<|end|>", "<|endoftext|>", "<0x41>", "a", "the",
]  # fmt: skip
CORPUS = [
    "The quick brown fox jumps over the lazy dog. They're 12 and 345, aren't they? " * 4,
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 345))\t# HELLO World\n" * 4,
    "Où est la gare? 東京 и Москва, こんにちは 🙂 camelCase...  two   three    four " * 4,
]
_DRAW = random.Random(0)
_DRAWN = ["".join(_DRAW.choices(PARTS, k=_DRAW.randint(1, 12))) for _ in range(300)]
TEXTS = ["", *PARTS, *CORPUS, *_DRAWN]


def scored(prefix: bool) -> Tokenizer:
    """A vocabulary of SentencePiece's kind: words of the corpus, scored by when they were made."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = sorted(inner.get_vocab().items(), key=lambda item: item[1])
    names = ["<unk>", "<s>", "</s>", *BYTES, *(name for name, _ in learned)]
    ids = {name: place for place, name in enumerate(names)}
    scores = {name: -float(place) for place, (name, _) in enumerate(learned)}
    made = merged_by_score(ids, scores, "<unk>", prefix)
    if not prefix:  # as Gemma has it
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(made, {"eos_token": "</s>", "bos_token": "<s>"})


def by_metaspace() -> Tokenizer:
    """The same, but that the space is put by what splits the text, and only where there is none."""
    made = tokenizers.Tokenizer.from_str(scored(prefix=True).json)
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return Tokenizer(made, {"eos_token": "</s>", "bos_token": "<s>"})


def byte_level(*words: str, whole: bool = False, normalizer: Any = None) -> Tokenizer:
    """A vocabulary that was trained on words as these expressions cut them."""
    inner = tokenizers.Tokenizer(models.BPE(ignore_merges=whole))
    inner.pre_tokenizer = splitter(*words) if words else pre_tokenizers.ByteLevel(False)
    inner.decoder = decoders.ByteLevel()
    inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=list(ALPHABET),
        special_tokens=["<|endoftext|>", "<|end|>"],
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens([tokenizers.AddedToken("camelCase", normalized=False)])
    return Tokenizer(inner, template=TEMPLATE)


OURS = {
    "gpt-2": lambda: byte_level(),
    "qwen2": lambda: byte_level(*RULES["qwen2"].words, normalizer=normalizers.NFC()),
    "own": lambda: BPE(vocabulary=400).build(CORPUS),
    "llama-bpe": lambda: byte_level(*RULES["llama-bpe"].words, whole=True),
    "dbrx": lambda: byte_level(*RULES["dbrx"].words),
    "smollm": lambda: byte_level(*RULES["smollm"].words),
    "deepseek-v3": lambda: byte_level(*RULES["deepseek-v3"].words),
    "gpt-4o": lambda: byte_level(*RULES["gpt-4o"].words),
    "llama": lambda: scored(prefix=True),
    "llama without prefix": lambda: scored(prefix=False),
    "llama by metaspace": by_metaspace,
}


def alike(name: str, text: str) -> bool:
    """Whether a GGUF file can express everything that the tokenizer of this name does to a text."""
    if name == "qwen2":
        return normalizers.NFC().normalize_str(text) == text
    return "metaspace" not in name or text[:1] != " "


def written(tokenizer: Tokenizer, path: Path, switches: Mapping[str, bool] = {}) -> Path:
    """A file that holds a tokenizer and no tensors, with further switches by their keys."""
    writer = gguf.GGUFWriter(path, "llama")
    for add in (
        writer.add_context_length, writer.add_embedding_length, writer.add_block_count,
        writer.add_feed_forward_length, writer.add_head_count,
    ):  # fmt: skip
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, tokenizer, tokenizer.vocabulary + 3)
    for key, value in switches.items():
        writer.add_bool(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def metadata(path: Path) -> dict[str, Any]:
    """All that a file of ours says, but for the tokenizer as we read it back."""
    return {key: value for key, value in gguf_header.read(path).items() if key not in OWN}


def peer(path: Path) -> Callable[..., list[int]]:
    """llama.cpp's own tokenizer of a file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text, specials=False: model.tokenize(text.encode(), False, specials)
