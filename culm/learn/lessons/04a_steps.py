# %% [markdown]
# # Lesson 4a: Steps that scale
#
# **The question.** The loop of lesson 2 trains a tiny model for a minute. What must change so
# that it trains a large one for a month? This lesson goes through one step, from text to the
# update of the weights: tokens, rows, gradients, precision, optimizer, learning rate. Lesson 4b
# goes on to many steps and many machines.

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Tokens: byte-pair encoding
#
# Bytes make long sequences, and attention costs time for each token. Byte-pair encoding (BPE,
# arXiv 1508.07909) makes longer tokens: find the most frequent pair of neighbours, make it one
# token, and repeat. After 30,000 merges the usual words are one token each, and rare words are
# several.


# %%
@exercise("bpe.best_pair")
def best_pair(words):
    """A list of words -> (bytes, bytes), the most frequent pair; the larger of equals."""
    raise NotImplementedError


@exercise("bpe.merge")
def merge(parts, pair):
    """parts: a list of bytes -> the list with every such pair joined, from the left."""
    raise NotImplementedError


@exercise("bpe.encode")
def encode(word, merges):
    """A word -> its tokens, a list of bytes. merges: pairs, the first one learned first."""
    raise NotImplementedError


# %% [markdown]
# The library trains tokenizers with the `tokenizers` package (`culm/tokenizer/train.py`);
# `culm/tokenizer/reference_bpe.py` is the same in plain Python, against which it is tested. How
# much shorter does a text become?

# %%
from culm.tokenizer.reference_bpe import ReferenceBPE

text = practice.text(("argparse", "textwrap"))[:60_000]
lengths = []
for merges in (0, 50, 100, 200, 400, 800):
    tokens = ReferenceBPE.train([text[:50_000]], merges).encode(text[50_000:])
    lengths.append((256 + merges, 10_000 / len(tokens)))
show(
    "bpe",
    plots.lines,
    {"source code": lengths},
    "tokens in the vocabulary",
    "characters per token, held out",
)

# %% [markdown]
# ## Rows: packing
#
# Documents have all lengths, and a batch is a rectangle. Padding each document to the longest
# wastes most of it. *Packing* puts several into one row. The best known rule: the longest first,
# each into the fullest row that still has room.


# %%
@exercise("packing.pack")
def pack(lengths, context):
    """lengths: a list, none above `context` -> the free room in each row, sorted."""
    raise NotImplementedError


chance = torch.Generator().manual_seed(0)
documents = (torch.rand(400, generator=chance).pow(2) * 255 + 1).int().tolist()
rows = pack(documents, 256)
print(f"padded: {sum(documents) / (256 * len(documents)):.0%} of the positions hold a token")
print(f"packed: {sum(documents) / (256 * len(rows)):.1%}")

# %% [markdown]
# Documents in one row must not see each other, and each must start at position 0. Otherwise the
# model learns from accidents of the packing.


# %%
@exercise("packing.packed_mask")
def packed_mask(documents):
    """documents: (T,), the number of the document of each token -> (T, T) of True and False."""
    raise NotImplementedError


@exercise("packing.positions")
def positions(documents):
    """documents: (T,) -> (T,) integers."""
    raise NotImplementedError


row = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
show(
    "packed",
    plots.table,
    packed_mask(row),
    "token that is read",
    "token that reads",
    title="three documents",
)

# %% [markdown]
# ## Gradients: accumulation
#
# A good step reads half a million tokens. They do not fit into memory at once, so the step is
# divided into *micro-batches*, whose gradients are added up. The trap: micro-batches have
# different numbers of learned targets. The mean of their means is not the mean. (The most used
# library had this mistake until 2024.)


# %%
@exercise("steps.accumulated")
def accumulated(sums, counts):
    """sums: loss of each micro-batch, counts: its targets -> the mean loss of the step."""
    raise NotImplementedError


# %% [markdown]
# Expected and seen: the library's loop with one batch of 16 rows, and with 8 micro-batches of 2
# rows. The curves must be the same.

# %%
data = practice.Windows(practice.tokens(practice.text()), context=48, rows=16)
config = practice.small(width=48)
whole = practice.train(config, data, steps=25)
parts = practice.train(config, practice.Windows(data.stream, 48, 16, micro_rows=2), steps=25)
show(
    "accumulation",
    plots.expected,
    parts.losses,
    whole.losses,
    "step",
    "loss, nats per byte",
    ("16 rows at once", "8 times 2 rows"),
)

# %% [markdown]
# One batch can have a huge gradient. *Clipping* scales it down: one factor for all, so that its
# direction stays.


# %%
@exercise("steps.clip")
def clip(gradients, limit):
    """A list of tensors -> the list, scaled so that the norm of all is at most `limit`."""
    raise NotImplementedError


# %% [markdown]
# ## Precision: 16 bits
#
# Matrices in 16 bits need half the memory and are several times as fast. There are two formats:
#
# | | bits of the exponent | bits of the fraction | largest number | next number after 1 |
# |---|---|---|---|---|
# | fp32 | 8 | 23 | 3 · 10³⁸ | 1.0000001 |
# | bf16 | 8 | 7 | 3 · 10³⁸ | 1.0078 |
# | fp16 | 5 | 10 | 65,504 | 1.001 |
#
# With bf16, 1 + 0.001 is 1: small updates of a weight are lost. So activations and matmuls are in
# 16 bits, and weights and optimizer stay in fp32 (*mixed precision*).

# %%
exact = torch.tensor(1.0)
short = torch.tensor(1.0, dtype=torch.bfloat16)
sums = {"fp32": [], "bf16": []}
for number in range(50):
    sums["fp32"].append((number, exact.item()))
    sums["bf16"].append((number, short.item()))
    exact, short = exact + 0.003, short + 0.003
show(
    "bf16",
    plots.expected,
    sums["bf16"],
    sums["fp32"],
    "times 0.003 was added to 1",
    "sum",
    ("fp32", "bf16"),
)

# %% [markdown]
# With fp16 it is the other end: gradients below 6 · 10⁻⁸ become 0. The remedy is to multiply the
# loss by a large *loss scale*, and to divide the gradients by it in fp32. If they overflow, the
# step is left out and the scale halved; after 2,000 good steps in a row it is doubled.


# %%
@exercise("steps.next_scale")
def next_scale(scale, row, norm):
    """norm: of the gradients, may be inf or nan; row: finite steps so far -> (scale, row)."""
    raise NotImplementedError


# %% [markdown]
# ## The optimizer: AdamW
#
# Plain gradient descent moves each weight by rate · gradient. But gradients of different weights
# differ by factors of thousands. AdamW (arXiv 1711.05101) keeps two running averages per weight,
# of the gradient and of its square, and moves by mean / √square: about the same distance for each
# weight. It also lets all weights shrink a little (*weight decay*).


# %%
@exercise("optimizer.adamw")
def adamw(weight, gradient, mean, square, step, rate):
    """One step, from 1 on. All tensors have one shape -> (weight, mean, square)."""
    raise NotImplementedError


# %% [markdown]
# Muon (2024) treats a weight matrix as a whole. Its update has all singular values near 1: every
# direction moves by the same amount. To get there without an SVD, it iterates a polynomial five
# times (Newton-Schulz): divide the matrix by its norm (plus 1e-7), then
#
#     x <- 3.4445 x - 4.7750 (x xᵀ) x + 2.0315 (x xᵀ)² x


# %%
@exercise("optimizer.orthogonalized")
def orthogonalized(matrix):
    """(R, C) with R <= C -> (R, C)."""
    raise NotImplementedError


matrix = torch.randn(24, 32)
values = [
    list(enumerate(torch.linalg.svdvals(m).tolist()))
    for m in (matrix / matrix.norm(), orthogonalized(matrix))
]
show(
    "muon",
    plots.lines,
    {"before": values[0], "after": values[1]},
    "number of the singular value",
    "singular value",
)

# %% [markdown]
# ## The learning rate
#
# Too low: slow. Too high: the loss jumps to infinity. And not the same all the time: at the start
# the averages of AdamW are unreliable, so it rises (*warm-up*); at the end it falls, so that the
# weights settle.


# %%
@exercise("optimizer.cosine")
def cosine(step, steps, warmup, final):
    """The factor of the peak rate in step 0 .. steps - 1. warmup: in steps, at least 1."""
    raise NotImplementedError


@exercise("optimizer.wsd")
def wsd(step, steps, warmup, decay):
    """Warm-up, stable, decay to nearly 0; warmup and decay: in steps."""
    raise NotImplementedError


curves = {
    "cosine": [(n, cosine(n, 60, 6, 0.1)) for n in range(60)],
    "WSD": [(n, wsd(n, 60, 6, 15)) for n in range(60)],
}
show("schedules", plots.lines, curves, "step", "factor of the peak learning rate")

# %% [markdown]
# Your cosine drives the library's loop (`culm/optim/schedule.py`, `culm/train/update.py`):

# %%
from culm.optim.schedule import Cosine

kept = practice.train(config, data, steps=25, schedule=Cosine(warmup=0.2, final=0.1))
with replaced(Cosine, "factor", lambda self, step, steps: cosine(step, steps, 5, 0.1)):
    yours = practice.train(config, data, steps=25, schedule=Cosine(warmup=0.2, final=0.1))
assert (
    yours.losses == kept.losses
    or max(abs(a[1] - b[1]) for a, b in zip(yours.losses, kept.losses, strict=True)) < 1e-3
)
print("your schedule trains like the library's")

# %% [markdown]
# ## An experiment: which rate?
#
# Prediction: the loss as a function of the rate is a valley. On the left the model learns too
# slowly, on the right its steps are too large. Muon's valley lies at higher rates.

# %%
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon

valley = {"AdamW": [], "Muon": []}
for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
    for name, kind in (("AdamW", AdamW), ("Muon", Muon)):
        done = practice.train(config, data, steps=60, optimizer=kind(rate=rate), schedule=Cosine())
        valley[name].append((rate, practice.held_out_loss(done.model, data)))
for name, points in valley.items():
    print(name, {rate: round(loss, 2) for rate, loss in points})
places = {
    name: [(torch.tensor(r).log10().item(), loss) for r, loss in one]
    for name, one in valley.items()
}
show("rates", plots.lines, places, "learning rate, power of 10", "held-out loss after 60 steps")

# %% [markdown]
# With clipping and at this size the right side is nearly flat. Large models diverge there. The
# lowest point of Muon is deeper: it needs fewer steps for the same loss.
#
# ## What goes wrong in practice
#
# - **The loss jumps (a spike) and comes back, or does not.** Clip; lower the rate; leave out the
#   batch. Culm notes spikes and can go back to a checkpoint (`train.spike`).
# - **A new tokenizer for an old model.** Ids mean something else: the loss starts above ln(V).
#   Weights and tokenizer belong together.
# - **Packed rows without a mask.** Trains, and answers about the neighbour's document.
# - **Weights in bf16 without fp32 copies.** Late in a run updates are smaller than half a step of
#   bf16, and training stops silently. Stochastic rounding is the other remedy
#   (`culm/optim/rounding.py`).
# - **A schedule that was planned for other steps.** Resumed with more steps, a cosine jumps back
#   up. WSD can be extended before its decay begins.
