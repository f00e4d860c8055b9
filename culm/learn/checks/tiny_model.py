"""Exercises of lesson 2: bytes, batches, loss, sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.batch import IGNORED
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling, TokenSampler, invert, truncate
from culm.learn.exercise import Exercise, Mistake, normal, whole
from culm.learn.practice import batch_of, small
from culm.model.attention.gqa import GQA
from culm.model.linear import Linear
from culm.model.logprobs import logprobs_of
from culm.tokenizer.bytes import Bytes

NOTHING = float("-inf")


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


def temperature(logits: Tensor, value: float) -> Tensor:
    """The probabilities from which the library samples a row of logits (V,)."""
    if value == 0:
        sampler = TokenSampler([Sampling(temperature=0)], [0])
        token, _ = sampler(logits[None], [[]], [[]])
        return F.one_hot(token[0], len(logits)).float()
    return (logits / value).softmax(-1)


def temperature_answer(logits: Tensor, value: float) -> Tensor:
    if value == 0:
        best = torch.zeros_like(logits)
        best[logits.argmax()] = 1.0
        return best
    return (logits / value).softmax(-1)


def _times_temperature(logits: Tensor, value: float) -> Tensor:
    return (logits * value).softmax(-1) if value else temperature_answer(logits, 0)


def _temperature_after(logits: Tensor, value: float) -> Tensor:
    return logits.softmax(-1) / value if value else temperature_answer(logits, 0)


def top_k(logits: Tensor, k: int) -> Tensor:
    return truncate(logits[None], [Sampling(top_k=k)])[0]


def top_k_answer(logits: Tensor, k: int) -> Tensor:
    last = logits.topk(k).values[-1]
    return logits.masked_fill(logits < last, NOTHING)


def top_p(logits: Tensor, p: float) -> Tensor:
    return truncate(logits[None], [Sampling(top_p=p)])[0]


def top_p_answer(logits: Tensor, p: float) -> Tensor:
    shares, order = logits.softmax(-1).sort(descending=True)
    before = shares.cumsum(-1) - shares  # of the tokens that are more likely
    kept = logits.clone()
    kept[order[before >= p]] = NOTHING
    return kept


def _top_p_without_last(logits: Tensor, p: float) -> Tensor:
    shares, order = logits.softmax(-1).sort(descending=True)
    kept = logits.clone()
    kept[order[shares.cumsum(-1) > p]] = NOTHING
    return kept


def _least_p(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(logits.softmax(-1) < p, NOTHING)


def sample(probabilities: Tensor, uniform: float) -> int:
    return int(invert(probabilities[None], torch.tensor([uniform], dtype=torch.float64))[0])


def sample_answer(probabilities: Tensor, uniform: float) -> int:
    sums = probabilities.double().cumsum(-1)
    return int((sums <= uniform * sums[-1]).sum())


Model = Callable[[Tensor], Tensor]


def generate(model: Model, prompt: list[int], count: int) -> list[int]:
    request = Request(tuple(prompt), count, Sampling(temperature=0))
    return list(Engine(model, 1, fused=False).generate([request])[0].tokens)  # type: ignore[arg-type]


@torch.no_grad()
def generate_answer(model: Model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def _generate_of_last(model: Model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens[-1:]]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def random_model() -> Model:
    """A tiny model with large weights, so that each token matters."""
    model = small(GQA(heads=2), width=16, layers=1).build(seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


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
    Exercise(
        "tiny_model.temperature",
        "Give the probabilities at a temperature: the softmax of logits / value, and at 0 all "
        "to the first of the largest.",
        temperature,
        lambda g: [(normal(g, 6), 0.5), (normal(g, 6), 2.0), (normal(g, 6), 0.0)],
        temperature_answer,
        (
            Mistake("divide: a low temperature makes differences larger.", _times_temperature),
            Mistake("the logits are divided, before the softmax.", _temperature_after),
        ),
    ),
    Exercise(
        "tiny_model.top_k",
        "Keep the k largest logits and set the others to -infinity.",
        top_k,
        lambda g: [(normal(g, 8), 3), (normal(g, 8), 1), (normal(g, 4), 4)],
        top_k_answer,
        (
            Mistake(
                "a logit of 0 has a probability; use -infinity.",
                lambda x, k: torch.where(x < x.topk(k).values[-1], 0.0, x),
            ),
            Mistake(
                "the k-th largest is kept too.",
                lambda x, k: x.masked_fill(x <= x.topk(k).values[-1], NOTHING),
            ),
        ),
    ),
    Exercise(
        "tiny_model.top_p",
        "Keep the fewest most likely tokens whose probabilities reach p, and set the others to "
        "-infinity.",
        top_p,
        lambda g: [(normal(g, 8), 0.7), (normal(g, 8), 0.05), (torch.tensor([3.0, 0.0, 0.0]), 0.9)],
        top_p_answer,
        (
            Mistake("the token that reaches p is kept too: at least one is.", _top_p_without_last),
            Mistake("p is for the sum of probabilities, not for each.", _least_p),
        ),
    ),
    Exercise(
        "tiny_model.sample",
        "Give the first token at which the running sum of probabilities exceeds the number.",
        sample,
        lambda g: [
            (torch.tensor([0.5, 0.25, 0.25]), 0.6),
            (torch.tensor([0.0, 1.0]), 0.0),
            (torch.tensor([0.5, 0.25, 0.25]), 0.5),
            (normal(g, 20).softmax(-1), 0.9),
        ],
        sample_answer,
        (
            Mistake("this takes the most likely token every time.", lambda p, u: int(p.argmax())),
            Mistake(
                "a token of probability 0 must not be sampled: the sum must be above the number.",
                lambda p, u: int((p.double().cumsum(-1) < u).sum()),
            ),
        ),
    ),
    Exercise(
        "tiny_model.generate",
        "Add the most likely next token `count` times, and give the new tokens.",
        generate,
        lambda g: [(random_model(), [72, 105], 6), (random_model(), [7], 1)],
        generate_answer,
        (
            Mistake(
                "the model must read all tokens so far, not the last alone.", _generate_of_last
            ),
            Mistake(
                "give the new tokens only.",
                lambda m, prompt, n: [*prompt, *generate_answer(m, prompt, n)],
            ),
        ),
    ),
)
