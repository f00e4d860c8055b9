# %% [markdown]
# # Lesson 1a: Attention by hand
#
# **The question.** A language model guesses the next token of a text. In "the cat sat on the",
# what decides that "mat" is likely? The words before it. But which of them, and how much?
# *Attention* is the part of a model that lets each token read the tokens before it, and take more
# from those that matter.
#
# You need Python and nothing else. A *tensor* is an array of numbers with a shape: `(5, 4)` is 5
# rows of 4 numbers. `a @ b` multiplies matrices: entry `[i, j]` of the result is the *dot
# product* of row i of `a` with column j of `b`, the sum of the numbers multiplied in pairs. Two
# vectors that point in the same direction have a large dot product.
#
# How this course works: a function under `@exercise(...)` is yours to write. Replace the line
# `raise NotImplementedError`, run the cell, and read what the check says. It compares your
# function with the one that Culm itself runs. As long as yours is not right, the lesson continues
# with Culm's. `culm learn solution attention.scores` shows an answer.
#
# What you need of PyTorch here, for a tensor `x`:
#
# | write | get |
# |---|---|
# | `x.exp()`, `x ** 0.5`, `x / 2` | each number changed on its own |
# | `x.sum(-1, keepdim=True)`, `x.amax(-1, keepdim=True)` | sum, largest, of each row, as a column |
# | `x / column`, `x - column` | each row divided by its number, or less its number |
# | `x.shape[-1]` | length of the last axis |
# | `x.reshape(a, b, c)` | the same numbers, in the same order, in another shape |
# | `x.T` | a matrix with rows and columns exchanged |
# | `x.transpose(1, 2)`, `x.transpose(-1, -2)` | two axes exchanged, of a tensor with more of them |
# | `torch.ones(a, b, dtype=torch.bool)` | True everywhere |
# | `x.tril()`, `x.triu()` | what is on and below the diagonal, or on and above it; the rest is 0 |
# | `~x` | True and False exchanged |

# %%
import torch

from culm.eval import plots
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## A picture first
#
# Here are four tokens. Each has three vectors, which a model learns:
#
# - a **query**: what this token searches for,
# - a **key**: what this token offers,
# - a **value**: what this token gives when it is read.
#
# Two numbers per vector are enough to see it. The first stands for "I am an animal", the second
# for "I am a verb". The token "sat" searches for an animal: its query is large in the first
# place.

# %%
words = ["the", "cat", "sat", "on"]
keys = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
queries = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
values = torch.tensor([[0.1, 0.0], [0.9, 0.3], [0.2, 0.8], [0.0, 0.1]])

raw = queries @ keys.T
show("scores", plots.table, raw, "key of", "query of", words, words, "dot products", True)

# %% [markdown]
# Row "sat", column "cat" is large: the query of "sat" fits the key of "cat". Row "on" fits "sat".
#
# ## Step 1: scores
#
# The score of a query and a key is their dot product, divided by the square root of their length
# D. Why divide? A dot product is a sum of D terms. If each term has variance 1, the sum has
# variance D, so scores grow with the size of the model. Dividing by √D keeps them at variance 1.
# Let us see that before you write it.

# %%
sizes = [4, 16, 64, 256, 1024]
spread = [(d, (torch.randn(2000, d) * torch.randn(2000, d)).sum(-1).std().item()) for d in sizes]
show(
    "spread",
    plots.expected,
    spread,
    [(d, d**0.5) for d in sizes],
    "size of a vector, D",
    "standard deviation of q · k",
    ("√D", "measured"),
    "xy",
)


# %%
@exercise("attention.scores")
def scores(q, k):
    """q, k: (T, D) -> (T, T), row t has the scores of query t with every key."""
    raise NotImplementedError


# %% [markdown]
# ## Step 2: from scores to shares
#
# The *softmax* makes shares of scores: e to the power of each score, divided by the sum of the
# row. All shares are positive and sum to 1. A score that is larger by 1 gets a share that is 2.7
# times as large.
#
# A computer cannot store e^1000. Subtract the largest score of each row first: numerator and
# denominator change by the same factor, so the shares are the same.


# %%
@exercise("attention.softmax")
def softmax(scores):
    """scores: (..., T) -> shares of the last axis, which sum to 1."""
    raise NotImplementedError


# %% [markdown]
# ## Step 3: no reading ahead
#
# A model that predicts the next token must not see it. So token t may read the tokens 0 to t
# only. This is called *causal*. The mask says who may read whom: row t is the token that reads.


# %%
@exercise("attention.causal_mask")
def causal_mask(length):
    """(length, length) of True and False: may the token of this row read that of this column?"""
    raise NotImplementedError


show("mask", plots.table, causal_mask(6), "token that is read", "token that reads")

# %% [markdown]
# A token that must not be read gets the score -infinity: e to that power is 0, so its share is 0,
# and the other shares still sum to 1. `scores.masked_fill(~mask, float("-inf"))` does that.


# %%
@exercise("attention.weights")
def weights(q, k):
    """q, k: (T, D) -> (T, T), the share that token t takes from each token up to t."""
    raise NotImplementedError


show("weights", plots.attention, weights(queries, keys)[None], words, "four words")

# %% [markdown]
# ## Step 4: read
#
# The result of a token is the sum of all values, each times its share. "sat" gets nearly the
# value of "cat".


# %%
@exercise("attention.attend")
def attend(q, k, v):
    """q, k, v: (T, D) -> (T, D)."""
    raise NotImplementedError


print(dict(zip(words, attend(queries, keys, values).tolist(), strict=True)))

# %% [markdown]
# That is all of attention (Vaswani et al., 2017, arXiv 1706.03762):
#
#     attention(q, k, v) = softmax(q kᵀ / √D + mask) v
#
# ## Step 5: several heads
#
# One softmax can search for one thing. A model wants several at once: the subject, the last
# bracket, the same word earlier. So a vector of E numbers is cut into H *heads* of D = E / H
# numbers, each head attends alone, and the results are put side by side again.


# %%
@exercise("attention.split_heads")
def split_heads(x, heads):
    """x: (T, E) -> (T, heads, E / heads)."""
    raise NotImplementedError


# %% [markdown]
# The library computes all heads of all rows of a batch at once. Its tensors are `(B, T, H, D)`:
# batch, token, head, element. A matmul works on the last two axes, so move the heads before the
# tokens, attend, and move them back (`x.transpose(1, 2)`).


# %%
@exercise("attention.multi_head")
def multi_head(q, k, v):
    """q, k, v: (B, T, H, D) -> (B, T, H, D); token t of a head reads the tokens up to t."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# Culm's function is `attend` in `culm/model/attend.py`. It computes the same, and in addition:
# several documents in one row, windows, caches, and kernels of GPUs. Around it stands
# `culm/model/attention/gqa.py`, which makes q, k and v from the state of each token by three
# learned matrices.
#
# Since both compute the same, your function can do the work in a real training run. Lesson 2
# explains training; here you need one number of it, the *loss*: how surprised the model is by the
# real next token, in units called nats. A model that knows nothing has 5.5, and lower is better.
# We train a small model of bytes on the source code of Python's standard library, first with
# Culm's attention, then with yours. The curves must lie on top of each other.

# %%
from culm.learn import practice
from culm.model.attention import gqa

data = practice.Windows(practice.tokens(practice.text()), context=64, rows=8)
ours = practice.train(practice.small(), data, steps=40)
with replaced(gqa, "attend", lambda q, k, v, context, rule, backend: multi_head(q, k, v)):
    yours = practice.train(practice.small(), data, steps=40)

show(
    "training",
    plots.expected,
    yours.losses,
    ours.losses,
    "step",
    "loss, nats per byte",
    ("library", "yours"),
)

# %% [markdown]
# ## An experiment: what does causal buy?
#
# Prediction: a model that may read ahead gets a low loss quickly, because the answer stands in
# front of it. It has learned to copy and nothing else. We take the mask away in training and look
# at the loss.


# %%
def reads_ahead(q, k, v, context, rule, backend):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5) @ v).transpose(1, 2)


with replaced(gqa, "attend", reads_ahead):
    cheat = practice.train(practice.small(), data, steps=120)
honest = practice.train(practice.small(), data, steps=120)
show(
    "cheating",
    plots.lines,
    {"causal": honest.losses, "reads ahead": cheat.losses},
    "step",
    "training loss, nats per byte",
)
print("loss on text that neither was trained on, where nothing can be read ahead:")
print(f"  causal      {practice.held_out_loss(honest.model, data):.2f}")
print(f"  reads ahead {practice.held_out_loss(cheat.model, data):.2f}")

# %% [markdown]
# The model that reads ahead has the lower training loss and is useless: asked without the answer
# in front of it, it is worse than the honest one. A training loss that is too good is the sign of
# a missing mask.
#
# ## Attention of the trained model
#
# What does the honest model read? Each map is one head of the first layer: a row is the token
# that reads.

# %%
from culm.eval.inspection import attention_maps

sample = "def add(a, b):\n    return a"
maps = attention_maps(honest.model, list(sample.encode()))
show("trained", plots.attention, maps[0], [repr(c)[1:-1] for c in sample], "layer 0")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The mask is missing or shifted by one.** The loss falls far below that of other models of
#   this size. Test: change a late token, and check that the outputs of the earlier ones stay the
#   same. Culm's tests do that for every attention (`tests/model`).
# - **The scale is missing.** With large D the softmax gives nearly all to one token, gradients
#   vanish, and training is slow from the first step.
# - **A row without any visible token.** The softmax of only -infinity is 0 / 0 = nan, and nan
#   spreads to all weights in one step. Padding must leave each token at least itself.
# - **Memory.** The matrix of shares has T × T entries per head: at 32,768 tokens, 4 GB in fp32
#   for one head. Fused kernels (FlashAttention) never store it.
#
# Next: lesson 1b puts attention into a block.
