"""Text to token ids: one file a kind of tokenizer; this union is the registry.

Nothing here knows tensors, so a verb that only needs text starts fast.
"""

from culm.config import one_of
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.saved import Saved
from culm.tokenizer.sentencepiece_train import SentencePiece
from culm.tokenizer.spacy import Spacy
from culm.tokenizer.superbpe import SuperBPE
from culm.tokenizer.tiktoken import Tiktoken
from culm.tokenizer.train import BPE

TokenizerConfig = one_of(BPE | Bytes | Saved | SentencePiece | Spacy | SuperBPE | Tiktoken)
TRAINED = (
    "bpe",
    "superbpe",
    "sentencepiece",
    "spacy",
)  # kinds that learn a vocabulary of a given size
