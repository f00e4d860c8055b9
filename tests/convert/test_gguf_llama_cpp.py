"""A slightly trained model in llama.cpp: perplexity by kind, greedy text.

A model that was never trained is unsure of everything, and no rounding can make it worse; this
one has learned sentences of a small grammar, so that its perplexity means something.
"""

import math
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from culm.config import parse
from culm.convert import gguf as ours
from culm.convert.gguf.kinds import KINDS
from culm.model.transformer import TransformerConfig
from culm.tokenizer.train import BPE

pytestmark = pytest.mark.slow
CONTEXT = 128
# How far perplexity may go from that of the model in fp32, in percent, and the divergence from its
# predictions, in nats: both about three times what was measured, and noise of this short text.
MOST = dict.fromkeys(KINDS, (0.5, 2e-4)) | {
    "f32": (0.01, 1e-7),
    "f16": (0.05, 1e-7),
    "bf16": (0.05, 1e-6),
    "q8_0": (0.1, 1e-5),
    "q6_k": (0.2, 6e-5),
    "q5_k_m": (0.3, 1e-4),
}


def sentences(seed: int, count: int) -> str:
    """Text with something to learn: who does what with whom, and sums that are right."""
    draw = random.Random(seed)
    animals = ["fox", "hen", "cat", "owl", "crab", "goat", "mouse", "horse"]
    deeds = ["sees", "helps", "follows", "paints", "teaches"]
    places = ["in the barn", "by the river", "under a tree", "on the hill"]
    lines = []
    for _ in range(count):
        one, two = draw.sample(animals, 2)
        a, b = draw.randint(0, 9), draw.randint(0, 9)
        lines.append(f"The {one} {draw.choice(deeds)} the {two} {draw.choice(places)}.")
        lines.append(f"It counts {a} + {b} = {a + b}, says the {one}.")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def words():
    return BPE(vocabulary=400).build([sentences(0, 500)])


@pytest.fixture(scope="module")
def learned(words):
    values = {
        "vocabulary": 400,
        "width": 256,
        "layers": 3,
        "context": CONTEXT,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2},
        "mlp": {"kind": "swiglu", "hidden": 512},
    }
    model = parse(TransformerConfig, values).build(seed=0)
    ids = torch.tensor(words.encode(sentences(1, 4000)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    places = torch.Generator().manual_seed(0)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 10, (150 - step) / 75)
        starts = torch.randint(len(ids) - 65, (8,), generator=places)
        rows = torch.stack([ids[start : start + 65] for start in starts])
        loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.3  # from 6.0
    return model.eval()


@pytest.fixture(scope="module")
def held_out(words):
    """Three rows of text that was not learned."""
    ids = words.encode(sentences(2, 60))
    return torch.tensor(ids[: 3 * CONTEXT]).view(3, CONTEXT)


def nats(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The mean negative log-likelihood of each row's tokens after the first."""
    return float(cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten()))


def read(llama_cpp, path, ids: torch.Tensor) -> torch.Tensor:
    """Its logits for each row."""
    peer = llama_cpp.Llama(str(path), n_ctx=CONTEXT, logits_all=True, verbose=False, n_threads=1)
    rows = []
    for row in ids.tolist():
        peer.reset()
        peer.eval(row)
        rows.append(torch.tensor(peer.scores[: len(row)].copy()))
    return torch.stack(rows)


@pytest.mark.parametrize("precision", KINDS)
def test_perplexity(learned, words, held_out, tmp_path, precision):
    """Theirs on our file against ours of the model that was written, on text of its grammar."""
    llama_cpp = pytest.importorskip("llama_cpp")
    ours.export(learned, words, tmp_path / "m.gguf", precision)
    with torch.no_grad():
        logits = learned(held_out)
    peers = read(llama_cpp, tmp_path / "m.gguf", held_out)
    growth = 100 * math.expm1(nats(peers, held_out) - nats(logits, held_out))
    mine, theirs = (torch.log_softmax(each.double(), -1) for each in (logits, peers))
    divergence = float((mine.exp() * (mine - theirs)).sum(-1).mean())
    assert abs(growth) < MOST[precision][0]
    assert divergence < MOST[precision][1]
    if precision.startswith("q"):
        assert divergence > MOST["bf16"][1]  # what was cut off shows: the test can tell


def test_greedy_text(learned, words, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    ours.export(learned, words, tmp_path / "m.gguf", "f16")
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=CONTEXT, verbose=False, n_threads=1)
    prompt = "The fox sees the hen"
    ids = words.encode(prompt)
    assert peer.tokenize(prompt.encode(), add_bos=False) == ids
    expected = list(ids)
    with torch.no_grad():
        for _ in range(50):
            expected.append(int(learned(torch.tensor([expected]))[0, -1].argmax()))
    generated = peer.generate(ids, temp=0.0, repeat_penalty=1.0)
    assert ids + [next(generated) for _ in range(50)] == expected
