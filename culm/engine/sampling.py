"""How the next token is chosen from the logits: one row or hundreds, each with its own settings.

The order is that of transformers: penalties, bias, constraint, temperature, top-k, top-p, min-p,
typical-p; then one token is sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from culm.engine.constraint import Allowed, restrict

WORD = (1 << 64) - 1  # seeds are taken modulo 2^64
LEAST_TEMPERATURE = 1e-5
NOTHING = float("-inf")
NUCLEUS = 64  # most likely tokens that usually cover top-p


@dataclass(frozen=True)
class Sampling:
    """One request's settings; the defaults are the model's own distribution.

    temperature: logits are divided by it; 0 takes the most likely token (the lowest id of equals).
    top_k: sample from the k most likely tokens, and from ties with the last; 0: from all.
    top_p: nucleus sampling, from the smallest set of tokens with this total probability.
    min_p: drop tokens below this fraction of the top token's probability.
    typical_p: sample from the tokens nearest to the entropy with this total (arXiv 2202.00666).
    repetition_penalty: logits of tokens in prompt and output are divided by it if positive and
        multiplied by it if negative (arXiv 1909.05858).
    presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once and
        per occurrence.
    bias: pairs (token, number added to its logit).
    seed: with the number of tokens generated so far, it decides every random number. None: a new
        one for each request.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 1 << 31),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            value = self.__dict__[name]
            if not low <= value <= high:  # a NaN fails too
                raise ValueError(f"{name}: {value} is outside {low}..{high}")
        if any(not abs(value) <= 100 for _, value in self.bias):
            raise ValueError("bias: a value is outside -100..100")

    @property
    def penalizes(self) -> bool:
        """Whether penalties or a bias change the logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.bias)

    @property
    def greedy(self) -> bool:
        """Whether to take the top token: logits divided by a tiny temperature would overflow."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0


class TokenSampler:
    """The settings of a batch's rows as tensors; made again when the rows change."""

    def __init__(
        self, rows: Sequence[Sampling], seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.rows = tuple(rows)
        self.seeds = np.array([seed & WORD for seed in seeds], dtype=np.uint64)
        self.device = torch.device(device)
        self.penalized = [index for index, row in enumerate(rows) if row.penalizes]
        self.greedy = all(row.greedy for row in rows)
        self.plain = all(row.greedy or row.temperature == 1 for row in rows)
        self.truncated = any(row.truncates and not row.greedy for row in rows)
        self.temperatures = self._column([1.0 if row.greedy else row.temperature for row in rows])
        self.takes_best = self._column([row.greedy for row in rows])[:, 0]
        self.mixed = not self.greedy and bool(self.takes_best.any())

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device)[:, None]

    def __call__(
        self,
        logits: Tensor,
        prompts: Sequence[Sequence[int]],
        outputs: Sequence[Sequence[int]],
        allowed: Sequence[Allowed | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row and its log-probability, (N,) each.

        logits: (N, V) fp32. prompts, outputs: each row's tokens so far, for penalties and random
        numbers. allowed: what a constraint allows each row; None: no row has one. The
        log-probability is under softmax(logits / temperature), before penalties, constraint and
        truncation, with temperature 0 counted as 1: the behaviour policy of policy gradients.
        """
        tempered = logits if self.plain else logits / self.temperatures
        logprobs = tempered.log_softmax(-1)
        changed = self._penalize(logits, prompts, outputs) if self.penalized else None
        if allowed is not None:
            changed = restrict(logits if changed is None else changed, allowed)
        best = logits if changed is None else changed
        if self.greedy:
            tokens = best.argmax(-1)
        else:
            scores = tempered if changed is None else changed / self.temperatures
            if self.truncated:
                scores = truncate(scores, self.rows)
            probabilities = logprobs.exp() if scores is tempered else scores.softmax(-1)
            tokens = invert(probabilities, self._uniforms([len(output) for output in outputs]))
            if self.mixed:
                tokens = torch.where(self.takes_best, best.argmax(-1), tokens)
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]

    def _penalize(
        self, logits: Tensor, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
    ) -> Tensor:
        logits = logits.clone()
        for i in self.penalized:
            logits[i] = penalize(logits[i], self.rows[i], prompts[i], outputs[i])
        return logits

    def _uniforms(self, counts: Sequence[int]) -> Tensor:
        return torch.from_numpy(uniforms(self.seeds, np.array(counts, np.uint64)))


def penalize(
    logits: Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]
) -> Tensor:
    """logits: (V,), with the penalties and the bias of one row applied."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        values, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = Counter(output)
    if counts:
        tokens = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), device=logits.device)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for token, value in sampling.bias:
        logits[token] += value
    return logits


def truncate(scores: Tensor, rows: Sequence[Sampling]) -> Tensor:
    """scores: (N, V), after the temperature; tokens that must not be sampled become -inf."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=scores.device)[:, None]

    if any(row.top_k for row in rows):
        scores = _top_k(scores, [row.top_k for row in rows])
    if any(row.top_p < 1 for row in rows):
        scores = _top_p(scores, column([row.top_p if row.top_p < 1 else 2.0 for row in rows]))
    if any(row.min_p for row in rows):
        shares = scores.softmax(-1)
        least = shares.amax(-1, keepdim=True) * column([row.min_p for row in rows])
        scores = scores.masked_fill(shares < least, NOTHING)
    if any(row.typical_p < 1 for row in rows):
        scores = _typical(scores, column([row.typical_p for row in rows]))
    return scores


def _top_k(scores: Tensor, ks: Sequence[int]) -> Tensor:
    """ks: one per row; 0 keeps all."""
    size = scores.shape[-1]
    best = scores.topk(min(max(ks), size)).values
    k = torch.tensor(ks, device=scores.device)[:, None]
    last = best.gather(-1, (k - 1).clamp(0, best.shape[-1] - 1))
    return scores.masked_fill((scores < last) & (k > 0), NOTHING)


def _top_p(scores: Tensor, p: Tensor) -> Tensor:
    """p: (N, 1). Drops a token when more likely ones already have a total probability of p."""
    total = scores.logsumexp(-1, keepdim=True)
    # Sorting a full vocabulary costs more than a small model's step, and is rarely needed.
    for count in (NUCLEUS, scores.shape[-1]):
        best = scores.topk(min(count, scores.shape[-1]))
        shares = (best.values - total).exp()
        sums = shares.cumsum(-1)
        if bool((sums[:, -1:] >= p).logical_or(p > 1).all()):
            break
    keep = (sums - shares < p).index_fill(-1, torch.tensor([0], device=p.device), True)
    allowed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, keep)
    return scores.masked_fill(~allowed & (p <= 1), NOTHING)


def _typical(scores: Tensor, p: Tensor) -> Tensor:
    """p: (N, 1); 1 keeps all. Drops a token when those nearer to the entropy have p already."""
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    nearest, order = distance.sort(-1)
    sums = scores.gather(-1, order).softmax(-1).cumsum(-1)
    last = (sums < p).sum(-1, keepdim=True).clamp_max(scores.shape[-1] - 1)
    return scores.masked_fill((distance > nearest.gather(-1, last)) & (p < 1), NOTHING)


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (N,) by inverting the distribution function with one uniform number per row.

    probabilities: (N, V); uniform: (N,) fp64 in [0, 1). Sums run in fp64, so that rounding cannot
    select a token of probability 0.
    """
    device = probabilities.device
    if device.type == "mps":  # has no fp64
        probabilities = probabilities.cpu()
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    at = uniform.to(sums.device)[:, None] * sums[:, -1:]
    tokens = torch.searchsorted(sums, at, right=True)[:, 0]
    return tokens.clamp_max(probabilities.shape[-1] - 1).to(device)


def uniforms(seeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (seed, count): SplitMix64 (Steele et al. 2014) as a hash.

    seeds, counts: (N,) uint64. Nothing else enters, so a request samples the same in any batch.
    """
    state = _mix(seeds) + (counts + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
