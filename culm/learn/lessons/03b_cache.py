# %% [markdown]
# # Lesson 3b: The cache, windows and sinks
#
# **The question.** A model writes one token at a time. Must it read the complete text again for
# each token? No: it stores what it computed, in the *KV cache*. Then the cache grows with the
# text. How can a model write without end in a fixed amount of memory?

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## What is computed twice
#
# Lesson 2 wrote by calling the model on all tokens so far, again and again. But attention is
# causal: the key and value of token 5 do not depend on token 6. Once computed, they stay. So
# store them, and give the model only the new token. Its query reads the stored keys.
#
# First the prompt is read at once (*prefill*), then one token per step (*decoding*).


# %%
@exercise("cache.tokens_read")
def tokens_read(prompt, new):
    """How many tokens a model computes to write `new` tokens: (without a cache, with one)."""
    raise NotImplementedError


counts = {new: tokens_read(100, new) for new in range(1, 400, 20)}
show(
    "work",
    plots.lines,
    {
        "without a cache": [(new, both[0]) for new, both in counts.items()],
        "with a cache": [(new, both[1]) for new, both in counts.items()],
    },
    "new tokens after a prompt of 100",
    "tokens computed",
)

# %% [markdown]
# ## One step


# %%
@exercise("cache.step")
def step(q, k, v, keys, values):
    """q, k, v: (H, D) of the new token; keys, values: (H, S, D) -> result (H, D), keys, values."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/model/cache.py` has the caches, and `culm/model/attend_cached.py` reads them.
# `culm/engine` decodes many texts at once with them. We train a small model, let it write with
# your step, and compare its logits with those of reading the complete text: they must agree up to
# rounding.

# %%
from culm.model.attention import gqa
from culm.model.attention.gqa import GQA
from culm.model.context import Context

data = practice.Windows(practice.tokens(practice.text()), context=64, rows=8)
model = practice.train(practice.small(GQA(heads=4), width=48), data, steps=60).model


def my_attend_cached(q, k, v, at, positions, rule, backend, first=None):
    """One new token of one text: the last of the stored ones is its own."""
    now = int(positions) + 1
    keys, values = k[0, :, : now - 1], v[0, :, : now - 1]
    out, _, _ = step(q[0, 0], k[0, :, now - 1], v[0, :, now - 1], keys, values)
    return out[None, None]


text = practice.tokens("def read(self, path):\n    return self.path.read(")
cache, pieces = model.cache(1, len(text)), []
with torch.no_grad(), replaced(gqa, "attend_cached", my_attend_cached):
    for place, token in enumerate(text):
        context = Context(torch.tensor([[place]]), cache=cache.view(place + 1))
        pieces.append(model(token.view(1, 1), context)[0, 0])
    apart = torch.stack(pieces)
whole = model(text[None])[0].detach()
gap = (apart - whole).abs().amax(-1)
show(
    "same",
    plots.lines,
    {"difference": list(enumerate(gap.tolist()))},
    "token",
    "largest difference of a logit",
)

# %% [markdown]
# ## Memory
#
# The cache holds two vectors (key, value) per token, layer and key head. Its size does not depend
# on the number of query heads: that is the point of GQA in lesson 3a.
#
# ## A sliding window
#
# Let each token read the last W tokens only, itself included (as in Mistral). Then older keys can
# be forgotten, and the memory is fixed.


# %%
@exercise("cache.window_mask")
def window_mask(length, window):
    """(length, length) of True and False."""
    raise NotImplementedError


@exercise("cache.memory")
def memory(tokens, layers, kv_heads, head_dim, window):
    """Bytes in bf16 (2 bytes a number) where only the last `window` tokens are kept."""
    raise NotImplementedError


show(
    "window",
    plots.table,
    window_mask(12, 4),
    "token that is read",
    "token that reads",
    title="window of 4",
)


def stored(window):
    """(tokens, kilobytes) of the library's cache."""
    built = practice.small(GQA(heads=4, kv_heads=2, window=window), layers=4).build(device="meta")
    built.dtype = torch.bfloat16
    return [(n, built.cache(1, n).bytes / 1024) for n in range(16, 257, 16)]


expected = [(n, memory(n, 4, 2, 16, 64) / 1024) for n in range(16, 257, 16)]
show("memory", plots.expected, stored(64), expected, "tokens", "cache with a window of 64, KiB")
print("at 256 tokens:", {"all": stored(None)[-1][1], "window of 64": stored(64)[-1][1]}, "KiB")

# %% [markdown]
# ## How far does a window reach?
#
# With a window of 4, one layer reaches 3 tokens back. The next layer reads what the first one
# made, which contains those 3 tokens already. So the reach grows with each layer.


# %%
@exercise("cache.reach")
def reach(layers, window):
    """The distance of the furthest earlier token that can change the result of a token."""
    raise NotImplementedError


# %% [markdown]
# Expected and seen: change one token of a text, and find the last position at which the output
# changes.

# %%
seen = []
for layers in range(1, 6):
    windowed = practice.small(GQA(heads=2, window=5), width=32, layers=layers).build(seed=0).eval()
    tokens = torch.randint(256, (1, 40))
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % 256
    with torch.no_grad():
        changed = (windowed(tokens) != windowed(other)).any(-1)[0].nonzero()
    seen.append((layers, int(changed.max()) - 2))
show(
    "reach",
    plots.expected,
    seen,
    [(n, reach(n, 5)) for n in range(1, 6)],
    "layers with a window of 5",
    "distance at which a change is seen, tokens",
)

# %% [markdown]
# ## A rolling buffer
#
# Where is position 1,000 stored if there is room for 64? In a ring: entry p modulo 64, over the
# oldest one. The order in the buffer is not that of the text, and need not be: the keys carry
# their rotation, and attention is a sum. Only the mask must know which position an entry holds.
#
# Some caches keep the first tokens for good (the next section says why): they have entries of
# their own, and the ring comes after them.


# %%
@exercise("cache.entry")
def entry(position, sinks, ring):
    """The index of the entry that a position is written to."""
    raise NotImplementedError


@exercise("cache.held")
def held(length, sinks, ring):
    """A list: the position in each of the sinks + ring entries; -1 for none."""
    raise NotImplementedError


grid = torch.tensor([held(n, 2, 6) for n in range(1, 16)])
show(
    "ring",
    plots.table,
    grid,
    "entry (2 sinks, then a ring of 6)",
    "tokens so far",
    rows=[str(n) for n in range(1, 16)],
    numbers=True,
    title="position in each entry",
)

# %% [markdown]
# ## Attention sinks
#
# The shares of a softmax must sum to 1, also for a token that needs nothing from the others.
# Trained models solve this by giving the rest to the *first* token: its share is large and its
# value small. It is a *sink* (arXiv 2309.17453). A window that drops the first token breaks such
# a model at once. Two remedies:
#
# 1. keep the first few tokens visible for ever;
# 2. give each head a learned score that takes part in the softmax and has no value (GPT-OSS).


# %%
@exercise("cache.sink_mask")
def sink_mask(length, window, sinks):
    """(length, length) of True and False."""
    raise NotImplementedError


@exercise("cache.sink_weights")
def sink_weights(q, k, sink):
    """q, k: (T, D), sink: a score -> causal weights (T, T), whose rows sum to less than 1."""
    raise NotImplementedError


show(
    "sinks",
    plots.table,
    sink_mask(12, 4, 2),
    "token that is read",
    "token that reads",
    title="window 4, sinks 2",
)

# %% [markdown]
# ## An experiment: how much context does this text need?
#
# Prediction: source code is local. A window of 1 (no attention at all) hurts much, and beyond 8
# the loss hardly changes, since a model this small and young cannot use what is far away.

# %%
found = {}
for window in (1, 2, 4, 8, 16, 32):
    trained = practice.train(practice.small(GQA(heads=4, window=window), width=48), data, steps=200)
    found[window] = practice.held_out_loss(trained.model, data)
show(
    "windows",
    plots.lines,
    {"after 200 steps": sorted(found.items())},
    "window, tokens",
    "held-out loss, nats per byte",
)
print({window: round(loss, 2) for window, loss in found.items()})

# %% [markdown]
# Differences of 0.05 are noise here. A large model that is trained on long texts continues to
# gain from thousands of tokens.
#
# ## What goes wrong in practice
#
# - **Cached and uncached differ.** A wrong position after the prompt, or a mask off by one. The
#   text still looks like text. Culm's tests compare the logits of both for every attention.
# - **Padding on the left.** Positions must not count it. Culm pads on the right, and an entry
#   after the last token is overwritten before it is read.
# - **Out of memory after an hour.** Weights are constant; the cache grows with each token and
#   each user. `culm inspect MODEL` shows the bytes per token.
# - **A window in inference that training did not have.** Loses the sinks. Train with the same
#   mask.
# - **A quantised cache.** Eight bits are nearly free, four bits are not for keys with large
#   channels. Measure it: `culm eval MODEL` with and without.
