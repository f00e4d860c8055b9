"""Likelihoods of options: those of each text alone, whatever is read together."""

import random

import pytest
import torch

from culm.engine import continuations
from culm.engine.continuations import likelihoods
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.attention.mla import MLA
from culm.model.block import Residual
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer, TransformerConfig

WORDS = 61
KINDS = {
    "full": {"attention": GQA(heads=4, kv_heads=2)},
    "windows": {"attention": [GQA(heads=2), GQA(heads=2, window=7, sink_tokens=1)]},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "states": {"attention": [DeltaNet(heads=2, head_dim=8), GQA(heads=2)]},
    "hyperbolic": {"attention": Hyperbolic(heads=2), "residual": Residual(curvature=1.0)},
    "experts": {"mlp": [SwiGLU(), MoE(experts=4, hidden=16, shared=1)]},
    "learned positions": {"learned_positions": True, "attention": GQA(heads=2, rope=None)},
}


def build(**settings) -> Transformer:
    torch.set_num_threads(1)
    values = {"attention": GQA(heads=2), **settings}
    config = TransformerConfig(vocabulary=WORDS, width=32, layers=2, context=128, **values)
    model = config.build(seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model


def pairs(questions: int = 24) -> list[tuple[list[int], list[int]]]:
    """Questions with some options each; half of them share examples, and one is alone."""
    chance = random.Random(0)

    def ids(count: int) -> list[int]:
        return [chance.randrange(WORDS) for _ in range(count)]

    examples, found = ids(66), []
    for number in range(questions):
        context = (examples if number % 2 else []) + ids(chance.randint(1, 40))
        found += [(context, ids(chance.randint(1, 9))) for _ in range(chance.randint(1, 5))]
    chance.shuffle(found)
    return found


def alone(model: Transformer, context: list[int], continuation: list[int]):
    with torch.no_grad():
        scores = model(torch.tensor([context + continuation]))[0].log_softmax(-1)
    rows = scores[len(context) - 1 : -1]
    targets = torch.tensor(continuation)
    chosen = rows.gather(-1, targets[:, None])
    return float(chosen.double().sum()), bool((rows.argmax(-1) == targets).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [300, 8192])
def test_they_are_those_of_each_text_alone(kind: str, limit: int, monkeypatch) -> None:
    """limit: of the cache, which then holds a few questions or all of them."""
    monkeypatch.setattr(continuations, "FORWARD_TOKENS", limit)
    monkeypatch.setattr(continuations, "CHUNK_TOKENS", 16)
    model, asked = build(**KINDS[kind]), pairs()
    found = likelihoods(model, asked)
    assert len(found) == len(asked)
    for (context, continuation), one in zip(asked, found, strict=True):
        total, greedy = alone(model, context, continuation)
        assert one.tokens == len(continuation)
        assert one.logprob == pytest.approx(total, abs=2e-3)
        assert one.greedy == greedy


def test_greedy_is_what_the_model_would_write() -> None:
    model = build()
    context = [5, 6, 7]
    written: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            written.append(int(model(torch.tensor([context + written]))[0, -1].argmax()))
    other = [*written[:-1], (written[-1] + 1) % WORDS]
    right, wrong, first = likelihoods(
        model, [(context, written), (context, other), (context, written[:1])]
    )
    assert (right.greedy, wrong.greedy, first.greedy) == (True, False, True)


def test_shared_tokens_are_read_once(monkeypatch) -> None:
    """Per question: its own tokens and its options', without the examples; the head reads less."""
    model, read, heads = build(), [], []
    hidden, logits = type(model).hidden, type(model).logits
    monkeypatch.setattr(
        type(model), "hidden", lambda self, x, c: read.append(x.numel()) or hidden(self, x, c)
    )
    monkeypatch.setattr(
        type(model), "logits", lambda self, x: heads.append(x.shape[0]) or logits(self, x)
    )
    examples = list(range(60)) + list(range(20))
    asked = [([*examples, n, n + 1], [n, n + 2, 3]) for n in range(20) for _ in range(4)]
    likelihoods(model, asked)
    assert sum(read) == len(examples) + 20 * 2 + 80 * 2
    assert sum(heads) == 20 + 80 * 2


def test_what_cannot_be_scored_is_refused() -> None:
    model = build()
    for bad in ([([], [1])], [([1], [])], [([1], [WORDS])]):
        with pytest.raises(ValueError, match="ids: "):
            likelihoods(model, bad)
    assert likelihoods(model, []) == []
