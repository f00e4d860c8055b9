"""Exercises of lesson 2: bytes, batches, loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.batch import IGNORED
from culm.learn.exercise import Exercise, Mistake, normal, whole
from culm.learn.practice import batch_of
from culm.model.linear import Linear
from culm.model.logprobs import logprobs_of
from culm.tokenizer.bytes import Bytes


def encode(text: str) -> list[int]:
    return list(Bytes().build().encode(text))


def encode_answer(text: str) -> list[int]:
    return list(text.encode("utf-8"))


def decode(ids: list[int]) -> str:
    return Bytes().build().decode(ids)


def decode_answer(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def windows(stream: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    batch = batch_of(stream[starts[:, None] + torch.arange(context + 1)])
    return batch.tokens, batch.targets


def windows_answer(stream: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    rows = torch.stack([stream[start : start + context + 1] for start in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def _windows_alike(stream: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    rows = stream[starts[:, None] + torch.arange(context)]
    return rows, rows


def _windows_ahead(stream: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    rows = stream[starts[:, None] + torch.arange(context + 2)]
    return rows[:, :-2], rows[:, 2:]


def split(stream: Tensor, share: float) -> tuple[Tensor, Tensor]:
    kept = len(stream) - round(share * len(stream))
    return stream[:kept], stream[kept:]


def _split_overlapping(stream: Tensor, share: float) -> tuple[Tensor, Tensor]:
    return stream, split(stream, share)[1]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    head = Linear(logits.shape[-1], logits.shape[-1])
    head.weight.data = torch.eye(logits.shape[-1])  # the library makes logits of states itself
    return -logprobs_of(logits, head, targets).sum().detach() / (targets != IGNORED).sum()


def cross_entropy_answer(logits: Tensor, targets: Tensor) -> Tensor:
    learned = targets != IGNORED
    logprobs = logits[learned].log_softmax(-1)
    right = logprobs.gather(-1, targets[learned][:, None])
    return -right.mean()


def _entropy_with_ignored(logits: Tensor, targets: Tensor) -> Tensor:
    logprobs = logits.log_softmax(-1)
    return -logprobs.gather(-1, targets.clamp_min(0)[..., None]).mean()


def _entropy_divided_by_all(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum") / (
        targets.numel()
    )


def bits_per_byte(nats: float, tokens: int, count: int) -> float:
    return nats * tokens / (count * math.log(2))


def bigram(stream: Tensor, vocabulary: int) -> Tensor:
    counts = torch.ones(vocabulary, vocabulary)
    pairs = stream[:-1] * vocabulary + stream[1:]
    counts += torch.bincount(pairs, minlength=vocabulary**2).view(vocabulary, vocabulary)
    return counts / counts.sum(1, keepdim=True)


def bigram_answer(stream: Tensor, vocabulary: int) -> Tensor:
    counts = torch.ones(vocabulary, vocabulary)
    for first, second in zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True):
        counts[first, second] += 1
    return counts / counts.sum(1, keepdim=True)


def _bigram_of_zeros(stream: Tensor, vocabulary: int) -> Tensor:
    counts = bigram(stream, vocabulary) * 0
    for first, second in zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True):
        counts[first, second] += 1
    return counts / counts.sum(1, keepdim=True)


def _bigram_backwards(stream: Tensor, vocabulary: int) -> Tensor:
    return bigram(stream.flip(0), vocabulary)


EXERCISES = (
    Exercise(
        "tiny_model.encode",
        "Give the UTF-8 bytes of a text as a list of numbers from 0 to 255.",
        encode,
        lambda g: [("abc",), ("Où? 東京 🙂",), ("",), ("a\n\tb",)],
        encode_answer,
        (
            Mistake(
                "ord gives the number of a character, which can be above 255. Encode it first.",
                lambda text: [ord(character) for character in text],
            ),
            Mistake("no byte may be lost.", lambda text: list(text.encode("ascii", "ignore"))),
        ),
    ),
    Exercise(
        "tiny_model.decode",
        "Give the text of bytes; those that are not UTF-8 become U+FFFD.",
        decode,
        lambda g: [([97, 98],), (list("東京".encode()),), ([79, 195],), ([],)],
        decode_answer,
        (
            Mistake(
                "a character may take several bytes: decode all bytes together.",
                lambda ids: "".join(map(chr, ids)),
            ),
            Mistake(
                "bytes that are no text become U+FFFD; they do not vanish.",
                lambda ids: bytes(ids).decode(errors="ignore"),
            ),
        ),
    ),
    Exercise(
        "tiny_model.windows",
        "Cut `context` tokens at each start, and their targets: the row one token later.",
        windows,
        lambda g: [
            (whole(g, 256, 50), torch.tensor([0, 30, 7]), 8),
            (whole(g, 9, 6), whole(g, 2, 1), 1),
        ],
        windows_answer,
        (
            Mistake("the target of a token is the token after it.", _windows_alike),
            Mistake("targets are one token later, not two.", _windows_ahead),
        ),
    ),
    Exercise(
        "tiny_model.split",
        "Split a stream into training text and its last `share`, which is held out.",
        split,
        lambda g: [(whole(g, 256, 100), 0.1), (whole(g, 256, 7), 0.5), (whole(g, 256, 5), 0.0)],
        None,
        (
            Mistake("held-out text must not be in the training text.", _split_overlapping),
            Mistake("hold out the end of the stream.", lambda s, h: split(s, 1 - h)[::-1]),
        ),
    ),
    Exercise(
        "tiny_model.cross_entropy",
        "Give the mean of -log p(target) over all targets that are not -100.",
        cross_entropy,
        lambda g: [
            (normal(g, 2, 5, 7), whole(g, 7, 2, 5)),
            (normal(g, 1, 4, 3), torch.tensor([[2, IGNORED, 0, IGNORED]])),
            (normal(g, 1, 2, 4) * 300, torch.tensor([[0, 3]])),
        ],
        cross_entropy_answer,
        (
            Mistake("leave out the targets that are -100.", _entropy_with_ignored),
            Mistake("divide by the number of learned targets.", _entropy_divided_by_all),
            Mistake("it is minus the logarithm.", lambda x, t: -cross_entropy_answer(x, t)),
        ),
    ),
    Exercise(
        "tiny_model.bits_per_byte",
        "Turn a loss in nats per token into bits per byte of the text.",
        bits_per_byte,
        lambda g: [(1.5, 100, 100), (3.2, 250, 1000)],
        None,
        (
            Mistake("a nat is 1 / ln 2 bits: divide by ln 2.", lambda n, t, c: n * t / c),
            Mistake("divide by bytes: a token may be several.", lambda n, t, c: n / math.log(2)),
            Mistake(
                "a nat is more than a bit, so the number grows.",
                lambda n, t, c: n * t / c * math.log(2),
            ),
        ),
    ),
    Exercise(
        "tiny_model.bigram",
        "Count which token follows which, from 1 on, and divide each row by its sum.",
        bigram,
        lambda g: [(whole(g, 5, 200), 5), (torch.tensor([1, 1, 2]), 4)],
        bigram_answer,
        (
            Mistake(
                "start each count at 1: a pair that was never seen must not be impossible.",
                _bigram_of_zeros,
            ),
            Mistake("row a, column b: b follows a.", _bigram_backwards),
        ),
    ),
)
