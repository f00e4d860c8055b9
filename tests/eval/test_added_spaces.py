"""Bits per byte of tokenizers that add a space before a text: the bytes of the text count."""

import itertools

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from culm.batch import Batch
from culm.data.format.document import DocumentFormat
from culm.data.pack import wrapped
from culm.eval.perplexity import predict
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.tokenizer.sentencepiece import BYTES, SPACE, merged_by_score
from culm.tokenizer.tokenizer import Tokenizer

TEXTS = ["a cat", "the fox met a crow", "Über", "x", "東京 und noch mehr", "a\n b"]
WORDS = [f"{SPACE}a", "ca", f"{SPACE}the", "th", f"{SPACE}f", f"{SPACE}x"]
FORMS = ("prepend", "none", "metaspace first", "metaspace always")


def tokenizer(form: str, begins: bool = True) -> Tokenizer:
    """A vocabulary of SentencePiece's kind. begins: with a begin token before each document."""
    letters = sorted({letter for text in TEXTS for letter in text if letter > " "})
    names = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *letters]
    names += ["th", f"{SPACE}th", *(word for word in WORDS if word not in names and word != "th")]
    scores = {name: -float(place) for place, name in enumerate(names[3:]) if name not in BYTES}
    ids = {name: place for place, name in enumerate(names)}
    inner = merged_by_score(ids, scores, "<unk>", prefix=form == "prepend")
    if form.startswith("metaspace"):
        inner.normalizer = normalizers.NFC()
        scheme = form.removeprefix("metaspace ")
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    if begins:
        frame = processors.TemplateProcessing(["<s>", "$A"], special_tokens=[("<s>", 1)])
        inner.post_processor = frame
    assert isinstance(inner, tokenizers.Tokenizer)
    return Tokenizer(inner, {"eos_token": "</s>", "bos_token": "<s>"})


def rows(words: Tokenizer, context: int) -> list[Batch]:
    """The documents as a corpus has them, packed into rows."""
    encoded = [list(example.tokens) for example in DocumentFormat().encode(TEXTS, words)]
    stream = torch.tensor(list(itertools.chain.from_iterable(encoded)))
    packed = wrapped(np.cumsum([0, *map(len, encoded)]), context)
    found = []
    for row in range(len(packed)):
        parts = [stream[start:end] for start, end in packed[row] if end - start > 1]
        if parts:
            places = [torch.arange(len(part) - 1) for part in parts]
            owners = [torch.full((len(part) - 1,), n, dtype=torch.int32)
                      for n, part in enumerate(parts)]  # fmt: skip
            columns = ([p[:-1] for p in parts], [p[1:] for p in parts], places, owners)
            found.append(Batch(*(torch.cat(column)[None] for column in columns)))
    return found


class Given:
    def __init__(self, batches):
        self.batches = batches

    def sample(self, targets):
        return iter(self.batches)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", [4, 9, 500])
def test_the_bytes_are_those_of_the_texts(form, context):
    words = tokenizer(form)
    config = TransformerConfig(
        vocabulary=words.vocabulary + 5, width=32, layers=1, context=512,
        attention=(GQA(heads=2),), tied=False,
    )  # fmt: skip
    model = config.build(seed=1).eval()
    torch.nn.init.zeros_(model.head.weight)
    found = predict(model, Given(rows(words, context)), words, 10_000)
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.tokens == sum(len(words.encode(text)) for text in TEXTS)
    assert found.perplexity == pytest.approx(config.vocabulary, rel=1e-5)


def test_a_space_of_the_text_itself_counts():
    """After the first token of a document, and in a dialogue between special tokens."""
    words = tokenizer("none")
    ids = words.encode("<s> a</s> x", specials=True)
    tokens = torch.tensor([ids])
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(len(ids) - 1)[None])
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=64, attention=(GQA(heads=2),)
    )
    found = predict(config.build(seed=1).eval(), Given([batch]), words, 10)
    assert found.bytes == len(" a x")
    prefixed = tokenizer("prepend")
    ids = prefixed.encode("<s>a</s>x", specials=True)
    tokens = torch.tensor([ids])
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(len(ids) - 1)[None])
    assert predict(config.build(seed=1).eval(), Given([batch]), prefixed, 10).bytes == len("ax")
