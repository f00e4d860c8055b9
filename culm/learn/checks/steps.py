"""Exercises of lesson 4a: tokens, packing, accumulation, precision, optimizers, schedules."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from culm.data.pack import fit
from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.attend import visible
from culm.model.context import Context
from culm.model.score_rule import ScoreRule
from culm.optim import muon
from culm.optim.adamw import AdamWRule
from culm.optim.schedule import WSD, Cosine
from culm.parallel.clip import Norm
from culm.parallel.clip import clip as library_clip
from culm.tokenizer.reference_bpe import ReferenceBPE, merged
from culm.train.loss_scale import INTERVAL, LossScale

Pair = tuple[bytes, bytes]
Moments = tuple[Tensor, Tensor, Tensor]
WORDS = ["low", "low", "lower", "lowest", "newest", "newest", "widest"]


def best_pair(words: list[str]) -> Pair:
    return ReferenceBPE.train(words, merges=1).merges[0]


def best_pair_answer(words: list[str]) -> Pair:
    counts: Counter[Pair] = Counter()
    for word in words:
        parts = [bytes([byte]) for byte in word.encode()]
        counts.update(pairwise(parts))
    return max(counts, key=lambda pair: (counts[pair], pair))


def _best_of_distinct(words: list[str]) -> Pair:
    return best_pair_answer(sorted(set(words)))


def _rarest_pair(words: list[str]) -> Pair:
    parts = [[bytes([byte]) for byte in word.encode()] for word in words]
    counts = Counter(pair for part in parts for pair in pairwise(part))
    return min(counts, key=lambda pair: (counts[pair], pair))


def merge(parts: list[bytes], pair: Pair) -> list[bytes]:
    return merged(parts, pair)


def merge_answer(parts: list[bytes], pair: Pair) -> list[bytes]:
    joined, at = list[bytes](), 0
    while at < len(parts):
        if at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair:
            joined.append(parts[at] + parts[at + 1])
            at += 2
        else:
            joined.append(parts[at])
            at += 1
    return joined


def _merge_first(parts: list[bytes], pair: Pair) -> list[bytes]:
    for at, both in enumerate(pairwise(parts)):
        if both == pair:
            return [*parts[:at], both[0] + both[1], *parts[at + 2 :]]
    return parts


def _merge_from_right(parts: list[bytes], pair: Pair) -> list[bytes]:
    turned = merge_answer(parts[::-1], (pair[1], pair[0]))
    whole = pair[0] + pair[1]
    return [whole if part == pair[1] + pair[0] else part for part in turned[::-1]]


def encode(word: str, merges: list[Pair]) -> list[bytes]:
    tokenizer = ReferenceBPE(merges)
    return [tokenizer.pieces[id] for id in tokenizer.encode(word)]


def encode_answer(word: str, merges: list[Pair]) -> list[bytes]:
    parts = [bytes([byte]) for byte in word.encode()]
    for pair in merges:
        parts = merge_answer(parts, pair)
    return parts


def _encode_longest(word: str, merges: list[Pair]) -> list[bytes]:
    known = {a + b for a, b in merges} | {bytes([byte]) for byte in range(256)}
    rest, parts = word.encode(), list[bytes]()
    while rest:
        size = max(n for n in range(1, len(rest) + 1) if rest[:n] in known)
        parts, rest = [*parts, rest[:size]], rest[size:]
    return parts


def pack(lengths: list[int], context: int) -> list[int]:
    rows = fit(np.array(lengths), context)
    return sorted(context - sum(lengths[document] for document in row) for row in rows)


def pack_answer(lengths: list[int], context: int) -> list[int]:
    free: list[int] = []  # room in each row
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(context - length)
    return sorted(free)


def _pack_in_order(lengths: list[int], context: int) -> list[int]:
    free = [context]
    for length in lengths:
        if free[-1] < length:
            free.append(context)
        free[-1] -= length
    return sorted(free)


def _pack_emptiest(lengths: list[int], context: int) -> list[int]:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        if free and max(free) >= length:
            free.append(free.pop(free.index(max(free))) - length)
        else:
            free.append(context - length)
    return sorted(free)


def packed_mask(documents: Tensor) -> Tensor:
    length = len(documents)
    context = Context(torch.arange(length)[None], documents[None])
    return visible(0, length, 0, length, context, ScoreRule())[0, 0]


def packed_mask_answer(documents: Tensor) -> Tensor:
    alike = documents[:, None] == documents
    return alike & torch.ones_like(alike).tril()


def positions(documents: Tensor) -> Tensor:
    at = torch.arange(len(documents))
    new = torch.cat((documents.new_ones(1), documents[1:] - documents[:-1])) != 0
    return at - torch.where(new, at, 0).cummax(0).values


def positions_answer(documents: Tensor) -> Tensor:
    found = [0]
    for before, now in pairwise(documents.tolist()):
        found.append(found[-1] + 1 if now == before else 0)
    return torch.tensor(found)


def accumulated(sums: list[float], counts: list[int]) -> float:
    return sum(sums) / sum(counts)


def _mean_of_means(sums: list[float], counts: list[int]) -> float:
    return sum(s / c for s, c in zip(sums, counts, strict=True)) / len(sums)


def next_scale(scale: float, row: int, norm: float) -> tuple[float, int]:
    loss_scale = LossScale()
    loss_scale.restore({"numbers": torch.tensor([scale, row, 0.0])})
    loss_scale.judge(1, norm)
    numbers = loss_scale.state()["numbers"].tolist()
    return numbers[0], int(numbers[1])


def next_scale_answer(scale: float, row: int, norm: float) -> tuple[float, int]:
    if not math.isfinite(norm):
        return scale / 2, 0
    if row + 1 == 2000:
        return scale * 2, 0
    return scale, row + 1


def _scale_grows_always(scale: float, row: int, norm: float) -> tuple[float, int]:
    return (scale * 2, 0) if math.isfinite(norm) else (scale / 2, 0)


def _scale_keeps_row(scale: float, row: int, norm: float) -> tuple[float, int]:
    return next_scale_answer(scale, row, norm) if math.isfinite(norm) else (scale / 2, row)


def clip(gradients: list[Tensor], limit: float) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(one)) for one in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    library_clip(parameters, limit, Norm())
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_answer(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = sum(float(one.square().sum()) for one in gradients) ** 0.5
    factor = min(1.0, limit / norm)
    return [one * factor for one in gradients]


def _clip_each(gradients: list[Tensor], limit: float) -> list[Tensor]:
    return [clip_answer([one], limit)[0] for one in gradients]


def _clip_elements(gradients: list[Tensor], limit: float) -> list[Tensor]:
    return [one.clamp(-limit, limit) for one in gradients]


def _clip_always(gradients: list[Tensor], limit: float) -> list[Tensor]:
    norm = sum(float(one.square().sum()) for one in gradients) ** 0.5
    return [one * limit / norm for one in gradients]


def adamw(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    parameter = nn.Parameter(weight.clone(), requires_grad=False)
    state = {"step": torch.tensor(step - 1.0), "exp_avg": mean, "exp_avg_sq": square}
    group = {"lr": rate, "weight_decay": 0.1, "eps": 1e-8}
    AdamWRule((0.9, 0.95)).update(parameter, gradient, state, group)
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


def adamw_answer(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.95 * square + 0.05 * gradient.square()
    mean_now, square_now = mean / (1 - 0.9**step), square / (1 - 0.95**step)
    weight = weight * (1 - rate * 0.1) - rate * mean_now / (square_now.sqrt() + 1e-8)
    return weight, mean, square


def _adam_uncorrected(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    _, mean, square = adamw_answer(weight, gradient, mean, square, step, rate)
    return weight * (1 - rate * 0.1) - rate * mean / (square.sqrt() + 1e-8), mean, square


def _adam_without_decay(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float
) -> Moments:
    moved, mean, square = adamw_answer(weight, gradient, mean, square, step, rate)
    return moved + weight * rate * 0.1, mean, square


def cosine(step: int, steps: int, warmup: int, final: float) -> float:
    return Cosine(warmup=warmup / steps, final=final).factor(step, steps)


def cosine_answer(step: int, steps: int, warmup: int, final: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    through = (step - warmup) / (steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * through)) / 2


def _cosine_from_zero(step: int, steps: int, warmup: int, final: float) -> float:
    return step / warmup if step < warmup else cosine_answer(step, steps, warmup, final)


def _cosine_to_zero(step: int, steps: int, warmup: int, final: float) -> float:
    return cosine_answer(step, steps, warmup, 0.0)


def wsd(step: int, steps: int, warmup: int, decay: int) -> float:
    return WSD(warmup=warmup / steps, decay=decay / steps, final=0.0).factor(step, steps)


def wsd_answer(step: int, steps: int, warmup: int, decay: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    start = steps - decay
    if step < start:
        return 1.0
    return 1 - math.sqrt((step - start + 1) / (decay + 1))


def _wsd_linear(step: int, steps: int, warmup: int, decay: int) -> float:
    start = steps - decay
    if step < start:
        return wsd_answer(step, steps, warmup, decay)
    return 1 - (step - start + 1) / (decay + 1)


def orthogonalized(matrix: Tensor) -> Tensor:
    return muon.orthogonalize(matrix)


def orthogonalized_answer(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def _orthogonalized_exactly(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


MERGES = [(b"e", b"s"), (b"es", b"t"), (b"l", b"o"), (b"lo", b"w"), (b"e", b"r")]
ROW = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


def _moments(g: torch.Generator, step: int) -> tuple:
    known = float(step > 1)  # both averages start at 0
    mean, square = known * normal(g, 4, 3) * 0.1, known * normal(g, 4, 3).square() * 0.01
    return normal(g, 4, 3), normal(g, 4, 3), mean, square, step, 0.01


EXERCISES = (
    Exercise(
        "steps.best_pair",
        "Find the pair of neighbouring bytes that is most frequent in a list of words; of equally "
        "frequent ones the larger.",
        best_pair,
        lambda g: [(WORDS,), (["aab", "ab", "ba", "ba"],), (["xyz"],)],
        best_pair_answer,
        (
            Mistake("a word that occurs twice counts twice.", _best_of_distinct),
            Mistake("take the most frequent pair.", _rarest_pair),
        ),
    ),
    Exercise(
        "steps.merge",
        "Join every occurrence of a pair of neighbours, from the left.",
        merge,
        lambda g: [
            ([b"n", b"e", b"s", b"t", b"e", b"s"], (b"e", b"s")),
            ([b"a", b"a", b"a"], (b"a", b"a")),
            ([b"a", b"b"], (b"b", b"a")),
        ],
        merge_answer,
        (
            Mistake("join every occurrence, not the first alone.", _merge_first),
            Mistake("begin at the left: a a a becomes aa a.", _merge_from_right),
        ),
    ),
    Exercise(
        "steps.encode",
        "Cut a word into tokens: apply the merges in the order in which they were learned.",
        encode,
        lambda g: [
            ("lowest", MERGES),
            ("newer", MERGES),
            ("west", []),
            ("abcd", [(b"b", b"c"), (b"a", b"b"), (b"c", b"d")]),
        ],
        encode_answer,
        (
            Mistake("the earliest merge has priority, not the longest token.", _encode_longest),
            Mistake(
                "start with the first merge that was learned.",
                lambda word, merges: encode_answer(word, merges[::-1]),
            ),
        ),
    ),
    Exercise(
        "steps.pack",
        "Put documents into rows, the longest first, each into the fullest row that has room; give "
        "the free room of all rows, sorted.",
        pack,
        lambda g: [([5, 3, 6, 2, 4, 4], 8), ([8, 8], 8), ([2, 3, 4, 6, 5], 10)],
        pack_answer,
        (
            Mistake("the longest document goes first, and into any row with room.", _pack_in_order),
            Mistake("use the fullest row that has room, not the emptiest.", _pack_emptiest),
        ),
    ),
    Exercise(
        "steps.packed_mask",
        "Say which tokens each token of a packed row may read: earlier ones of its own document.",
        packed_mask,
        lambda g: [(ROW,), (torch.zeros(3, dtype=torch.int64),), (torch.arange(4),)],
        packed_mask_answer,
        (
            Mistake(
                "a document must not read the one before it.",
                lambda d: torch.ones(len(d), len(d), dtype=torch.bool).tril(),
            ),
            Mistake("no token reads ahead.", lambda d: d[:, None] == d),
        ),
    ),
    Exercise(
        "steps.positions",
        "Number the tokens of a packed row from 0 in each document.",
        positions,
        lambda g: [(ROW,), (torch.zeros(3, dtype=torch.int64),), (torch.arange(4),)],
        positions_answer,
        (Mistake("each document starts at 0.", lambda d: torch.arange(len(d))),),
    ),
    Exercise(
        "steps.accumulated",
        "Give the mean loss of a step from the sums and counts of its micro-batches.",
        accumulated,
        lambda g: [([10.0, 300.0], [10, 100]), ([5.0], [2]), ([0.0, 6.0], [1, 3])],
        None,
        (
            Mistake(
                "a mean of means weighs a short micro-batch like a long one.",
                _mean_of_means,
            ),
            Mistake(
                "divide by the targets, not by the micro-batches.", lambda s, c: sum(s) / len(s)
            ),
        ),
    ),
    Exercise(
        "steps.next_scale",
        "Give the next loss scale and how many finite steps came in a row: half after an overflow, "
        "double after 2,000 finite ones.",
        next_scale,
        lambda g: [
            (1024.0, 7, 1.5),
            (1024.0, INTERVAL - 1, 1.5),
            (1024.0, 7, math.inf),
            (8.0, 0, math.nan),
        ],
        next_scale_answer,
        (
            Mistake("grow only after 2,000 finite steps in a row.", _scale_grows_always),
            Mistake("after an overflow the row starts again at 0.", _scale_keeps_row),
        ),
    ),
    Exercise(
        "steps.clip",
        "Scale all gradients by one factor so that their common norm is at most the limit.",
        clip,
        lambda g: [
            ([normal(g, 4, 3) * 5, normal(g, 7)], 1.0),
            ([normal(g, 2, 2) * 0.01, normal(g, 2) * 0.01], 1.0),
        ],
        clip_answer,
        (
            Mistake("one norm over all gradients: their direction must stay.", _clip_each),
            Mistake("scale; do not cut off single numbers.", _clip_elements),
            Mistake("gradients below the limit stay as they are.", _clip_always),
        ),
        tolerance=1e-4,
    ),
    Exercise(
        "steps.adamw",
        "Do one step of AdamW with betas 0.9 and 0.95, eps 1e-8 and weight decay 0.1; give the "
        "weight and both averages.",
        adamw,
        lambda g: [_moments(g, 1), _moments(g, 5)],
        adamw_answer,
        (
            Mistake(
                "the averages start at 0: divide by 1 - beta^step before they are used.",
                _adam_uncorrected,
            ),
            Mistake("the weight also shrinks, by rate * 0.1 of itself.", _adam_without_decay),
        ),
    ),
    Exercise(
        "steps.orthogonalized",
        "Push the singular values of a matrix towards 1 by five steps of Newton-Schulz.",
        orthogonalized,
        lambda g: [(normal(g, 4, 6),), (normal(g, 5, 5),)],
        orthogonalized_answer,
        (
            Mistake(
                "the formula gets near to 1, not exactly there: no SVD.", _orthogonalized_exactly
            ),
            Mistake(
                "divide by the norm of the matrix first.", lambda m: orthogonalized_answer(m) * 2
            ),
        ),
        tolerance=1e-3,
    ),
    Exercise(
        "steps.cosine",
        "Give the factor of the learning rate: a linear warm-up from 1 / warmup, half a cosine "
        "from 1 to `final`.",
        cosine,
        lambda g: [(0, 100, 10, 0.1), (9, 100, 10, 0.1), (10, 100, 10, 0.1), (77, 100, 10, 0.1)],
        cosine_answer,
        (
            Mistake("the first step must learn too: (step + 1) / warmup.", _cosine_from_zero),
            Mistake("it ends at `final`, not at 0.", _cosine_to_zero),
        ),
    ),
    Exercise(
        "steps.wsd",
        "Give the factor of warm-up, stable, decay: 1 in between, and 1 - sqrt(x) over the last "
        "steps, x = (steps into the decay + 1) / (decay + 1).",
        wsd,
        lambda g: [(0, 100, 10, 20), (50, 100, 10, 20), (80, 100, 10, 20), (99, 100, 10, 20)],
        wsd_answer,
        (Mistake("the decay is 1 - sqrt(x), not 1 - x.", _wsd_linear),),
    ),
)
