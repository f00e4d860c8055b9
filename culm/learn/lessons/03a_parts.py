# %% [markdown]
# # Lesson 3a: Modern parts
#
# **The question.** The model of lesson 2 has the shape of GPT-2 (2019). Today's models have the
# same skeleton with other parts: RMSNorm instead of LayerNorm, rotary positions instead of a
# table, a gated feed-forward, and fewer keys and values. What does each of them do, and is it
# better?
#
# | part | 2019 | today | why |
# |---|---|---|---|
# | norm | LayerNorm | RMSNorm (lesson 1b) | cheaper, as good |
# | position | a learned row | RoPE: rotate q and k | the distance counts, not the place |
# | feed-forward | up, GELU, down | SwiGLU: gate and up | lower loss at equal size |
# | attention | all heads have keys | GQA, MLA | a smaller cache |

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## RoPE: positions as rotations
#
# Attention does not know the order of tokens: shuffle them, and each gets the same shares. A
# table of learned positions tells it, but only for places that it has seen in training.
#
# Rotary embedding (RoPE, arXiv 2104.09864) uses a fact about circles. Take two numbers of a query
# as a point in the plane, and rotate it by the angle m·θ, where m is its position. Rotate the key
# at position n by n·θ. Their dot product then depends on the *difference* m - n alone, since
# rotating both by the same angle changes nothing. So a head can learn "two tokens back", wherever
# it stands.
#
# A head has D numbers, so D / 2 pairs. Each pair has its own angle: the first rotate fast and
# count single tokens, the last rotate slowly and see long distances. The angles are
# base^(-2i/D), with base 10,000.


# %%
@exercise("parts.frequencies")
def frequencies(base, dim):
    """(D / 2,): the angle of each pair per token."""
    raise NotImplementedError


positions = torch.arange(0, 100)
waves = {
    f"pair {i}": list(zip(range(100), (positions * angle).cos().tolist(), strict=True))[:60]
    for i, angle in enumerate(frequencies(10_000.0, 8).tolist())
}
show("waves", plots.lines, waves, "position, tokens", "cosine of the angle")

# %% [markdown]
# Rotation by the angle a: (x, y) becomes (x cos a - y sin a, y cos a + x sin a). Culm pairs
# element i with element i + D / 2 (the *half-split* layout).


# %%
@exercise("parts.rotate")
def rotate(x, positions, base):
    """x: (T, D), positions: (T,) -> (T, D)."""
    raise NotImplementedError


# %% [markdown]
# Expected and seen: the score of a query and a key with the distance 0 to 39, once at the start
# of a text and once 1,000 tokens later. The two must agree.

# %%
q, k = torch.randn(2, 1, 16)
distances = torch.arange(40)


def scores_at(start):
    keys = rotate(k.expand(40, -1), start + torch.arange(40), 10_000.0)
    queries = rotate(q, torch.tensor([start + 39]), 10_000.0)
    return list(zip((39 - distances).tolist(), (keys @ queries[0]).tolist(), strict=True))


show(
    "distance",
    plots.expected,
    scores_at(1000),
    scores_at(0),
    "distance of query and key, tokens",
    "score",
    ("at the start", "1,000 tokens later"),
)

# %% [markdown]
# ## SwiGLU: one projection gates another
#
# In place of `down(gelu(up x))` there are two projections, and one decides how much of the other
# passes: `down(silu(gate x) * up x)`, where silu(z) = z · sigmoid(z) (arXiv 2002.05202). Three
# matrices instead of two; to keep the number of parameters, the inner width shrinks from 4 to 8/3
# of the width. Hardware likes multiples of 32.


# %%
@exercise("parts.inner_width")
def inner_width(width):
    """8/3 of the width, rounded up to a multiple of 32."""
    raise NotImplementedError


@exercise("parts.swiglu")
def swiglu(x, gate, up, down):
    """x: (T, E), gate, up: (hidden, E), down: (E, hidden) -> (T, E)."""
    raise NotImplementedError


# %% [markdown]
# ## GQA: fewer keys and values
#
# When a model writes, it stores the keys and values of all tokens so far (the *KV cache*, lesson
# 3b). For long texts that is more memory than the weights. Grouped-query attention (GQA, arXiv
# 2305.13245) lets several query heads share one head of keys and values: 8 query heads and 2 key
# heads make the cache 4 times smaller.


# %%
@exercise("parts.grouped")
def grouped(q, k, v):
    """q: (B, T, H, D), k, v: (B, T, K, D) -> (B, T, H, D), causal."""
    raise NotImplementedError


@exercise("parts.cache_bytes")
def cache_bytes(layers, kv_heads, head_dim):
    """Bytes that one token adds to the cache, at 2 bytes a number."""
    raise NotImplementedError


print("a 7B model with 32 layers, 32 heads of 128:", f"{cache_bytes(32, 32, 128):,} bytes a token")
print("the same with 8 key heads:                 ", f"{cache_bytes(32, 8, 128):,} bytes a token")

# %% [markdown]
# ## MLA: one small latent for all heads
#
# Multi-head latent attention (MLA, arXiv 2405.04434, DeepSeek) goes further. It stores one short
# vector per token, the *latent*, and makes the keys and values of all heads from it by matrices.
# A rotation depends on the position, so rotated keys cannot use the trick below. One small
# rotated key is stored in addition, which all heads share.


# %%
@exercise("parts.latent_keys")
def latent_keys(latent, up, shared):
    """latent: (T, rank), up: (H, D, rank), shared: (T, R), rotated already -> (T, H, D + R)."""
    raise NotImplementedError


# %% [markdown]
# The trick: q · (W c) is the same as (Wᵀ q) · c. So while writing, the matrix is applied to the
# one new query instead of to all stored latents, and the keys never exist. This is called
# *absorption*.


# %%
@exercise("parts.absorbed_scores")
def absorbed_scores(q, latent, up):
    """q: (T, H, D), latent: (S, rank), up: (H, D, rank) -> (H, T, S)."""
    raise NotImplementedError


@exercise("parts.latent_cache_bytes")
def latent_cache_bytes(layers, rank, rope_dim):
    """Bytes that one token adds to the cache, at 2 bytes a number."""
    raise NotImplementedError


print(
    "DeepSeek-V3 (61 layers, rank 512, 64 rotated):", f"{latent_cache_bytes(61, 512, 64):,} bytes"
)

# %% [markdown]
# ## The library's version
#
# `culm/model/rope.py`, `culm/model/mlp/gated.py`, `culm/model/attention/gqa.py` and
# `culm/model/attention/mla.py`. A model names its parts in its settings, layer by layer if you
# like. Your rotation and your grouped attention in a real run:

# %%
from culm.model.attention import gqa
from culm.model.attention.gqa import GQA

data = practice.Windows(practice.tokens(practice.text()), context=48, rows=8)
config = practice.small(GQA(heads=4, kv_heads=2), width=48)


def my_rotate(x, rotation):
    places = torch.arange(x.shape[1])
    rows = [rotate(x[b, :, h], places, 10_000.0) for b in range(len(x)) for h in range(x.shape[2])]
    return torch.stack(rows).view(len(x), x.shape[2], *rows[0].shape).transpose(1, 2)


ours = practice.train(config, data, steps=20)
with (
    replaced(gqa, "rotate", my_rotate),
    replaced(gqa, "attend", lambda q, k, v, context, rule, backend: grouped(q, k, v)),
):
    yours = practice.train(config, data, steps=20)
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
# ## An ablation
#
# An *ablation* changes one thing at a time. From the model of 2019 to today's, each row adds a
# part to the row above it. All have nearly the same number of parameters, the same data, the same
# seed, and as many steps.
#
# Prediction: RoPE helps most, since it says what is near; the norm changes nothing; GQA and MLA
# cost a little and make the cache smaller. Differences below 0.05 are noise here: another seed
# changes as much. (A serious ablation runs three seeds and several learning rates.)

# %%
from culm.model.attention.mla import MLA
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.plain import Plain
from culm.model.norm import LayerNormConfig, RMSNormConfig
from culm.plan.model import cost_of

old = {"mlp": (Plain(hidden=256),), "learned_positions": True}
steps = {
    "2019": practice.small(GQA(heads=4, rope=None), norm=LayerNormConfig(), **old),
    "+ RMSNorm": practice.small(GQA(heads=4, rope=None), norm=RMSNormConfig(), **old),
    "+ RoPE": practice.small(GQA(heads=4), mlp=(Plain(hidden=256),)),
    "+ SwiGLU": practice.small(GQA(heads=4), mlp=(SwiGLU(hidden=170),)),
    "+ QK norm": practice.small(GQA(heads=4, qk_norm="head"), mlp=(SwiGLU(hidden=170),)),
    "GQA": practice.small(GQA(heads=4, kv_heads=1), mlp=(SwiGLU(hidden=202),)),
    "MLA": practice.small(
        MLA(heads=4, rank=24, head_dim=16, rope_dim=8, value_dim=16), mlp=(SwiGLU(hidden=180),)
    ),
}
data = practice.Windows(practice.tokens(practice.text()), context=64, rows=12)
losses = {}
print(f"{'model':<10}{'parameters':>12}{'cache, bytes':>14}{'held-out loss':>15}")
for name, config in steps.items():
    trained = practice.train(config, data, steps=120)
    losses[name] = practice.held_out_loss(trained.model, data)
    cost = cost_of(config, 64)
    print(f"{name:<10}{cost.parameters:>12,}{cost.cache_bytes:>14}{losses[name]:>15.3f}")
show("ablation", plots.columns, losses, "model", "held-out loss, nats per byte", losses["2019"])

# %% [markdown]
# Compare the table with the prediction. GQA and MLA are to be compared with the row "+ SwiGLU":
# they have a quarter of its cache. QK norm (arXiv 2302.05442) loses here, and is in many large
# models nevertheless: it keeps scores from growing in long runs with high learning rates, and 120
# steps are too few to need that. Small models and short runs exaggerate what helps early.
# Conclusions for large models need large models.
#
# ## What goes wrong in practice
#
# - **Two layouts of RoPE.** GPT-J and Meta's files pair neighbours, Hugging Face's pair i with i
#   + D / 2. A checkpoint read with the wrong one still writes words, and is much worse. Culm
#   permutes on reading.
# - **Positions that restart, or do not.** In packed rows (lesson 4a) each document starts at 0.
#   After a cut cache, positions continue.
# - **RoPE beyond the trained length.** Angles that were never seen: the loss jumps. Scaling
#   (linear, NTK, YaRN) slows the pairs down; `culm/model/rope.py` lists the kinds.
# - **Ablations without seeds.** Half of the published "improvements" at this scale are smaller
#   than the difference between two seeds.
