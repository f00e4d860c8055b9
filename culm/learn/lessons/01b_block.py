# %% [markdown]
# # Lesson 1b: From attention to a model
#
# **The question.** Lesson 1a built attention. How does it become a model that reads tokens and
# predicts the next one, and why do models of a hundred layers train at all? The answer is two
# small ideas: *residuals* and *norms*.
#
# Here is the complete model. Each arrow is a tensor with one vector of E numbers per token:
#
#     tokens -> embedding -> block -> block -> ... -> norm -> head -> a score for every token
#
#     block:   x --+-- norm -- attention --(+)--+-- norm -- feed-forward --(+)--> x
#                  +------------------------+   +---------------------------+

# %%
import torch

from culm.eval import plots
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Tokens become vectors
#
# A token is a number, such as 97 for the byte "a". The *embedding* is a table with a row for each
# token. The model learns the rows. Token 97 gets row 97.


# %%
@exercise("block.embed")
def embed(table, tokens):
    """table: (V, E), tokens: (T,) integers -> (T, E)."""
    raise NotImplementedError


# %% [markdown]
# ## The feed-forward
#
# Attention moves information between tokens. The *feed-forward* then computes on each token
# alone: a matrix to a larger inner width, a step that is not linear, and a matrix back. Without
# that step the two matrices would be one matrix. The simplest such step replaces negative numbers
# by 0 (ReLU).


# %%
@exercise("block.feed_forward")
def feed_forward(x, up, down):
    """x: (T, E), up: (hidden, E), down: (E, hidden) -> (T, E)."""
    raise NotImplementedError


# %% [markdown]
# ## Norms
#
# A deep network multiplies by many matrices. If each makes its input 1.5 times as large, 50 of
# them make it 600 million times as large. A *norm* brings each vector back to a standard size
# before it is used. There are two kinds:
#
# - **LayerNorm** (arXiv 1607.06450): subtract the mean, divide by the standard deviation, then
#   times a learned weight, plus a learned bias.
# - **RMSNorm** (arXiv 1910.07467): divide by the root of the mean square, times a learned weight.
#   It is cheaper and works as well; most models use it today.
#
# A small number eps keeps a vector of zeros from being divided by 0.


# %%
@exercise("block.layer_norm")
def layer_norm(x, weight, bias, eps):
    """x: (..., E), weight, bias: (E,) -> (..., E)."""
    raise NotImplementedError


@exercise("block.rms_norm")
def rms_norm(x, weight, eps):
    """x: (..., E), weight: (E,) -> (..., E)."""
    raise NotImplementedError


# %% [markdown]
# ## Residuals
#
# A block does not replace x. It computes a change and adds it: `x + branch(norm(x))`. The sum x
# runs through all blocks and is called the *residual stream*. Every block reads from it and adds
# to it.
#
# Why does that help? In training, the gradient flows backwards through the sum. The derivative of
# `x + branch(x)` is 1 plus something, so the gradient reaches the first block even if the
# branches pass little.


# %%
@exercise("block.add_branch")
def add_branch(x, norm, branch):
    """x: (T, E); norm, branch: functions (T, E) -> (T, E)."""
    raise NotImplementedError


@exercise("block.block")
def block(x, norm1, attention, norm2, mlp):
    """x: (T, E); the others are functions (T, E) -> (T, E)."""
    raise NotImplementedError


# %% [markdown]
# ## Expected and seen: how the stream grows
#
# Before training, a branch with random weights gives numbers of variance 1 if its input has
# variance 1, and the norm makes sure that it has. Variances of independent sums add up. So after
# n branches the variance of the stream should be 1 + n: it grows in a straight line. Without
# norms, x itself is multiplied by the random matrix, so each block doubles the variance.

# %%
size = 256


def random_map():
    matrix = torch.randn(size, size) / size**0.5
    return lambda x: x @ matrix.T


def plain_norm(x):
    return rms_norm(x, torch.ones(size), 1e-5)


x = y = torch.randn(64, size)
with_norm, without = [(0, 1.0)], [(0, 1.0)]
for depth in range(1, 25):
    branch = random_map()
    x, y = add_branch(x, plain_norm, branch), y + branch(y)
    with_norm.append((depth, x.var().item()))
    without.append((depth, y.var().item()))

show(
    "stream",
    plots.expected,
    with_norm,
    [(n, 1 + n) for n in range(25)],
    "branches",
    "variance of the residual stream",
    ("1 + n", "with norms"),
)
show(
    "explodes",
    plots.expected,
    without,
    [(n, 2.0**n) for n in range(25)],
    "branches",
    "variance without norms",
    ("2 to the power of n", "seen"),
    "y",
)

# %% [markdown]
# ## The end: scores of all tokens
#
# The last state of a token is compared with every row of a table: the dot product is the score
# (*logit*) of that token to be next. Small models use the table of the embedding again (*tied*
# weights), which saves V × E parameters.


# %%
@exercise("block.logits")
def logits(hidden, table):
    """hidden: (..., E), table: (V, E) -> (..., V)."""
    raise NotImplementedError


# %% [markdown]
# ## Count it
#
# How many numbers does such a model learn? Attention has four matrices E × E (q, k, v, and one
# that mixes the heads). The feed-forward has two, E × hidden. Each block has two RMSNorms with E
# weights. There is one norm after the last block, and the table once.


# %%
@exercise("block.parameters")
def parameters(vocabulary, width, layers, hidden):
    """The number of parameters of the model; nothing has a bias."""
    raise NotImplementedError


print("GPT-2 small, nearly:", f"{parameters(50257, 768, 12, 3072):,}")

# %% [markdown]
# ## The library's version
#
# `culm/model/block.py` is the block, `culm/model/norm.py` has both norms,
# `culm/model/transformer.py` is the model. Your RMSNorm can replace the library's in a training
# run:

# %%
from culm.learn import practice
from culm.model.block import Block
from culm.model.norm import RMSNorm

data = practice.Windows(practice.tokens(practice.text()), context=48, rows=8)
config = practice.small(width=48, layers=2)
ours = practice.train(config, data, steps=25)
with replaced(RMSNorm, "forward", lambda self, x: rms_norm(x, self.weight, self.eps)):
    yours = practice.train(config, data, steps=25)
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
# ## An experiment: without residuals
#
# Prediction: a model of 6 blocks without the sums learns next to nothing, since hardly any
# gradient reaches its weights. `Block._added` is the sum in the library; we replace it by the
# branch alone.

# %%
deep = practice.small(width=48, layers=6)


def gradients(model):
    """(layer, norm of the gradient of the q matrix) after one backward."""
    batch = data.step(0)[0]
    (-model.logprobs(batch.tokens, batch.targets).mean()).backward()
    return [(i, one.attention.q.weight.grad.norm().item()) for i, one in enumerate(model.blocks)]


found = {"with residuals": gradients(deep.build(seed=0))}
summed = practice.train(deep, data, steps=60)
with replaced(Block, "_added", lambda self, x, branch, number: branch):
    found["without"] = gradients(deep.build(seed=0))
    bare = practice.train(deep, data, steps=60)
show("gradients", plots.lines, found, "layer", "norm of the gradient")
show(
    "residuals",
    plots.lines,
    {"with residuals": summed.losses, "without": bare.losses},
    "step",
    "loss, nats per byte",
)

# %% [markdown]
# ## What goes wrong in practice
#
# - **Norm in the wrong place.** The first transformers normalised after the sum. Deep ones then
#   need a long warm-up of the learning rate. Normalising before the branch (arXiv 2002.04745)
#   trains without it.
# - **Statistics in 16 bits.** The mean of squares loses digits in bf16. Culm computes norms in
#   fp32 and gives the result in the dtype of x.
# - **eps of another model.** A checkpoint trained with eps 1e-6 and read with 1e-5 gives slightly
#   other logits. It belongs to the settings of a model.
# - **The first loss.** A new model should know nothing: a loss of ln(V), which is 5.55 for 256
#   bytes. If it starts far above, the initial weights are too large.

# %%
print(f"first loss {ours.losses[0][1]:.2f}, ln(256) = {torch.tensor(256.0).log():.2f}")
