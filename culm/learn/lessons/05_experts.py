# %% [markdown]
# # Lesson 5: Mixture of experts, and hybrids
#
# **The question.** A larger feed-forward knows more, but each token pays for all of it. Can a
# model *have* many parameters and *use* few? A mixture of experts has, say, 8 feed-forwards and
# sends each token to 2 of them. Most of the largest models today do that. The second question of
# this lesson is the same for attention: can most layers do without a cache that grows?
#
#     token -> router -> scores of 8 experts -> the best 2 -> weighted sum of what these two give

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Routing
#
# The router is one matrix: a score for each expert. Softmax, take the k highest, and let their
# weights sum to 1.


# %%
@exercise("experts.route")
def route(logits, k):
    """logits: (N, experts) -> weights (N, k), chosen (N, k), the highest first."""
    raise NotImplementedError


sentence = "the cat sat on a mat"
weights, chosen = route(torch.randn(len(sentence), 6), 2)
routing = torch.zeros(len(sentence), 6).scatter(1, chosen, weights)
show(
    "routing",
    plots.table,
    routing.T,
    "token",
    "expert",
    list(sentence),
    [str(n) for n in range(6)],
    "weight of each expert",
)


@exercise("experts.mixture")
def mixture(x, router, gate, up, down, k):
    """x: (N, E), router: (experts, E), gate, up: (experts, H, E), down: (experts, E, H)."""
    raise NotImplementedError


# %% [markdown]
# The gradient reaches the router through the weights: if an expert helps, its score grows. It
# does not reach the *choice*: an expert that was not chosen learns nothing from this token. That
# causes all the trouble below.
#
# ## What it costs


# %%
@exercise("experts.sizes")
def sizes(width, hidden, experts, k):
    """Parameters of the layer, and those that one token uses; SwiGLU experts and the router."""
    raise NotImplementedError


counts = {n: sizes(512, 1024, n, 2) for n in (2, 4, 8, 16, 32, 64)}
show(
    "sizes",
    plots.lines,
    {
        name: [(n, both[i] / 1e6) for n, both in counts.items()]
        for i, name in enumerate(("all", "used by a token"))
    },
    "experts, of which 2 are used",
    "million parameters",
)

# %% [markdown]
# How is it computed fast? A loop over tokens would be slow. Sort the assignments by expert, and
# each expert multiplies one block of rows: a *grouped matmul* (`culm/model/grouped.py`).


# %%
@exercise("experts.grouped")
def grouped(chosen, experts):
    """chosen: (N, k) -> tokens by expert (N * k,), and where those of each end (experts,)."""
    raise NotImplementedError


# %% [markdown]
# ## Balance
#
# An expert that is a little better gets more tokens, learns more, gets even more tokens. In the
# end one expert does all the work, and seven are dead weight: *collapse*. So first measure the
# load.


# %%
@exercise("balance.load")
def load(chosen, experts):
    """chosen: (N, k) -> (experts,), how many tokens each got, as a multiple of the mean."""
    raise NotImplementedError


# %% [markdown]
# Two remedies. The *auxiliary loss* (Switch Transformer, arXiv 2101.03961): for each expert, the
# fraction of assignments f times the mean score P. The sum, times the number of experts, is 1 if
# all are even. The counts have no gradient, but the scores have: overloaded experts get lower
# scores.


# %%
@exercise("balance.balance_loss")
def balance_loss(logits, chosen):
    """logits: (N, experts), chosen: (N, k) -> a tensor without axes; even is 1."""
    raise NotImplementedError


even, skewed = [], []
for strength in torch.linspace(0, 4, 15).tolist():
    logits = torch.randn(4000, 8) + strength * torch.eye(8)[0]
    picked = route(logits, 1)[1]
    skewed.append((load(picked, 8)[0].item(), balance_loss(logits, picked).item()))
show(
    "auxiliary",
    plots.lines,
    {"one expert is preferred": skewed},
    "load of the preferred expert, multiple of the mean",
    "auxiliary loss",
)

# %% [markdown]
# The auxiliary loss also pulls at what the model should learn. DeepSeek-V3 balances without it
# (arXiv 2408.15664): a *bias* per expert is added to the scores for the choice only, not for the
# weights. After each step it rises a little for experts below the mean and falls for the others.
# All move by the same small rate; at Culm their sum is kept.


# %%
@exercise("balance.moved_bias")
def moved_bias(bias, counts, rate):
    """bias: (experts,), counts: (experts,), tokens of each in this step -> the new bias."""
    raise NotImplementedError


# %% [markdown]
# Two more safety belts. The *z-loss* keeps the router's logits small, so that 16 bits suffice. A
# *capacity* limits the tokens of an expert, so that a full one cannot hold up the others on its
# machine; tokens that find their expert full skip it.


# %%
@exercise("balance.z_loss")
def z_loss(logits):
    """logits: (N, experts) -> a tensor without axes."""
    raise NotImplementedError


@exercise("experts.fits")
def fits(chosen, experts, factor):
    """chosen: (N, k) -> (N, k) of True and False, in the order of tokens."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/model/mlp/moe.py` is the layer, `culm/model/mlp/balance.py` has the losses,
# `culm/objective/experts.py` moves the biases. Your auxiliary loss in a training run:

# %%
from culm.model.mlp import moe
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE

data = practice.Windows(practice.tokens(practice.text()), context=48, rows=12)


def experts(**more):
    return practice.small(width=48, mlp=(MoE(experts=8, top_k=2, hidden=48, **more),))


def my_switch_loss(shares, assigned):
    """The library asks for a sum over tokens, with the scores after the softmax."""
    picked = assigned.topk(2).indices
    return balance_loss(shares.log(), picked) * len(shares)


ours = practice.train(experts(balance_loss=0.01), data, steps=20)
with replaced(moe, "switch_loss", my_switch_loss):
    yours = practice.train(experts(balance_loss=0.01), data, steps=20)
show("training", plots.expected, yours.losses, ours.losses, "step", "loss", ("library", "yours"))

# %% [markdown]
# ## An experiment: with and without balance
#
# Prediction: without balance, some experts get several times the mean and others nearly nothing.
# With the auxiliary loss or the bias, all are near 1. Whether the held-out loss gains is less
# sure: in so short a run each of 8 experts sees few tokens.

# %%
kinds = {
    "none": experts(),
    "auxiliary loss": experts(balance_loss=0.02),
    "bias": experts(selection_bias=True, bias_rate=0.02),
    "dense, as wide as 2 experts": practice.small(width=48, mlp=(SwiGLU(hidden=96),)),
    "dense, as wide as 8 experts": practice.small(width=48, mlp=(SwiGLU(hidden=384),)),
}
worst, loads = {}, {}
for name, config in kinds.items():
    trained = practice.train(config, data, steps=120)
    loss = practice.held_out_loss(trained.model, data)
    print(f"{name:<28} held-out loss {loss:.3f}")
    if "max_violation" in trained.steps[-1].metrics:
        worst[name] = [(one.step, one.metrics["max_violation"]) for one in trained.steps]
        last = [one.metrics for one in trained.steps[-20:]]
        loads[name] = [sum(m[f"load.{n}"] for m in last) / len(last) for n in range(8)]
show(
    "violation",
    plots.lines,
    worst,
    "step",
    "load of the fullest expert above the mean, as a fraction",
)
show(
    "loads",
    plots.table,
    torch.tensor(list(loads.values())),
    "expert",
    "balance",
    [str(n) for n in range(8)],
    list(loads),
    "mean load in the last 20 steps, multiple of the mean",
    True,
)

# %% [markdown]
# The two dense rows are the frame: the mixture computes as much per token as the first and has
# the parameters of the second. In our run the unbalanced mixture was level with the first, and
# balance cost loss: two busy experts had learned more in 120 steps than eight that shared the
# tokens. Balance pays in long runs, and on machines that wait for their fullest expert.
#
# ## Hybrids: a state instead of a cache
#
# *Linear attention* stores no tokens. Each head keeps a matrix S that maps keys to values. A new
# token lets S decay, replaces what S says of its key by its own value, and reads the entry of its
# query. This is the gated delta rule (arXiv 2412.06464):
#
#     S <- exp(-decay) S
#     S <- S + strength · k (v - k S)          (an outer product)
#     result = q S / √D


# %%
@exercise("hybrid.state_step")
def state_step(state, q, k, v, decay, strength):
    """state: (D, Dv), q, k: (D,), v: (Dv,), decay, strength: numbers -> result (Dv,), state."""
    raise NotImplementedError


# %% [markdown]
# A state has a fixed size, so it must forget: it cannot copy a long text word by word. So models
# such as Qwen3-Next mix: three layers with a state, then one with attention. The cache is a
# quarter.


# %%
@exercise("hybrid.hybrid_bytes")
def hybrid_bytes(tokens, layers, every, kv, state):
    """Bytes in fp32. kv: numbers in the keys of a token, as many in its values; state: numbers in a
    state. The last of every `every` layers has attention, the others have a state.
    """
    raise NotImplementedError


from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig


def stacked(*attention, layers=4):
    return TransformerConfig(
        vocabulary=256, width=48, layers=layers, context=1024, attention=attention
    )


state, full = DeltaNet(heads=4), GQA(heads=4)
hybrid = stacked(state, state, state, full)
numbers = 4 * 12 * 12 + 3 * (3 * 48)  # four heads of 12 x 12, and three inputs of its convolution
model = hybrid.build(device="meta")
seen = [(n, model.cache(1, n).bytes / 1024) for n in range(64, 1025, 96)]
expected = [(n, hybrid_bytes(n, 4, 4, 48, numbers) / 1024) for n, _ in seen]
show("hybrid", plots.expected, seen, expected, "tokens", "cache of one text, KiB")
print(
    "at 1,024 tokens, attention everywhere:", hybrid_bytes(1024, 4, 1, 48, numbers) // 1024, "KiB"
)

# %% [markdown]
# And the loss? Prediction: at this length states do as well as attention, because little is far
# away, and they may learn faster: their short convolution shows each token its neighbours from
# the start.

# %%
found = {}
for name, config in (
    ("attention", stacked(full)), ("3 to 1", hybrid), ("states only", stacked(state)),
):  # fmt: skip
    trained = practice.train(config, data, steps=80)
    found[name] = practice.held_out_loss(trained.model, data)
show("hybrids", plots.columns, found, "layers", "held-out loss after 80 steps, nats per byte")
print({name: round(loss, 2) for name, loss in found.items()})

# %% [markdown]
# ## What goes wrong in practice
#
# - **Collapse.** Watch `max_violation` from the first step. Culm logs it for each layer.
# - **Balance per micro-batch is not balance.** The auxiliary loss of a small micro-batch forces
#   every sentence to use all experts. The bias looks over the complete step.
# - **A router in 16 bits.** Near ties flip. Culm computes scores in fp32.
# - **Capacity in inference.** The answer of one user then depends on the others in the batch.
#   Culm uses it in training only.
# - **Fine-tuning on few data.** The router drifts; freeze it, or train adapters on attention
#   only.
# - **Memory, not FLOPs.** All experts must be in memory, also those that are used rarely. A
#   mixture is fast per token and large on the disk.
