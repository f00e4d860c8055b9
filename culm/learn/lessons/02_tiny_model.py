# %% [markdown]
# # Lesson 2: A tiny language model
#
# **The question.** You have a model that turns tokens into scores (lesson 1). How does it learn,
# how do you know that it learned, and how does it write? At the end, a model of 856,832
# parameters that has read nothing but Python code writes lines that resemble Python code.
#
# The whole loop in five lines:
#
#     repeat:
#         take a batch of text
#         let the model predict each next token
#         loss = how surprised it was by the real next token
#         move each weight a little in the direction that lowers the loss

# %%
import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Text becomes numbers
#
# The simplest tokens are bytes: every text in every language is a sequence of numbers from 0 to
# 255 (UTF-8). An English letter is one byte; "東" is three. Not every sequence of bytes is a text,
# so a model may write bytes that are none. They are shown as U+FFFD.


# %%
@exercise("tiny_model.encode")
def encode(text):
    """A text -> list of bytes."""
    raise NotImplementedError


@exercise("tiny_model.decode")
def decode(ids):
    """A list of bytes -> text."""
    raise NotImplementedError


stream = torch.tensor(encode(practice.text()))
print(f"{len(stream):,} bytes, beginning with {decode(stream[:40].tolist())!r}")

# %% [markdown]
# ## Held-out text
#
# A model that has seen a text may know it by heart. Whether it learned the *language* shows only
# on text that it never saw. So the last part of the stream is set aside before anything else.


# %%
@exercise("tiny_model.split")
def split(stream, share):
    """(N,) -> training text, and the last round(share * N) tokens."""
    raise NotImplementedError


training, held_out = split(stream, 0.1)

# %% [markdown]
# ## Batches
#
# A batch is a table of tokens: B rows of T tokens, cut at random places. The target of each token
# is the token after it. So one row of T + 1 tokens gives T predictions at once, and the mask of
# lesson 1a makes sure that none of them sees its own target.


# %%
@exercise("tiny_model.windows")
def windows(stream, starts, context):
    """stream: (N,), starts: (B,) -> tokens (B, context), targets (B, context)."""
    raise NotImplementedError


rows, targets = windows(training, torch.tensor([0, 500]), 8)
print(rows, targets, sep="\n")

# %% [markdown]
# ## Loss
#
# The model gives every token of the vocabulary a probability. If the real next token had the
# probability p, the loss is -ln p: 0 for p = 1, 0.69 for p = 1/2, and it grows without limit as p
# goes to 0. The mean over all targets is the *cross-entropy*, in *nats*. Some targets must not
# count, such as padding; they are -100.

# %%
chances = torch.linspace(0.02, 1, 50)
curve = list(zip(chances.tolist(), (-chances.log()).tolist(), strict=True))
show("surprise", plots.lines, {"loss": curve}, "probability of the real next token", "loss, nats")


@exercise("tiny_model.cross_entropy")
def cross_entropy(logits, targets):
    """logits: (B, T, V), targets: (B, T) -> mean loss, a tensor without axes."""
    raise NotImplementedError


# %% [markdown]
# A loss per token depends on how long tokens are. *Bits per byte* does not: how many bits does
# the model need to store one byte of the text? A bit is ln 2 = 0.693 nats. Random bytes need 8
# bits.


# %%
@exercise("tiny_model.bits_per_byte")
def bits_per_byte(nats, tokens, count):
    """nats: mean loss per token; tokens: how many; count: bytes of their text."""
    raise NotImplementedError


# %% [markdown]
# ## A baseline without any network
#
# Before a network, count. How often does "e" follow "h"? A table of 256 x 256 counts is a
# language model, the *bigram* model. Whatever a network does, it must beat it. Each count starts
# at 1, since a pair that the training text does not contain is rare, and not impossible.


# %%
@exercise("tiny_model.bigram")
def bigram(stream, vocabulary):
    """(N,) -> (V, V): row a has the probabilities of the token after a."""
    raise NotImplementedError


table = bigram(training, 256)
baseline = -table[held_out[:-1], held_out[1:]].log().mean().item()
letters = "abcdefghij"
part = table[list(letters.encode())][:, list(letters.encode())]
show(
    "bigram",
    plots.table,
    part,
    "next byte",
    "byte",
    letters,
    letters,
    "probability of the next byte",
)
print(f"bigram: {baseline:.2f} nats, {bits_per_byte(baseline, 1, 1):.2f} bits per byte")

# %% [markdown]
# ## The loop, by hand
#
# `loss.backward()` computes the gradient: for each weight, how much the loss grows when the
# weight grows. The optimizer moves each weight against its gradient. AdamW also scales each step
# by how large the gradients of this weight usually are (lesson 4a).

# %%
config = practice.small(width=64, layers=2)
model = config.build(seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses, checks = [], []


@torch.no_grad()
def validate(model, steps=4):
    """Mean loss on held-out text: always the same windows, so that the numbers can be compared."""
    found = []
    for step in range(steps):
        starts = torch.arange(16) * 100 + step * 1600
        tokens, targets = windows(held_out, starts, 64)
        found.append(cross_entropy(model(tokens), targets).item())
    return sum(found) / len(found)


for step in range(200):
    starts = torch.randint(len(training) - 65, (16,))
    tokens, targets = windows(training, starts, 64)
    loss = cross_entropy(model(tokens), targets)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append((step, loss.item()))
    if step % 40 == 39:
        checks.append((step, validate(model)))

show(
    "by-hand",
    plots.lines,
    {"training": losses, "held out": checks, "bigram, held out": [(0, baseline), (200, baseline)]},
    "step",
    "loss, nats per byte",
)

# %% [markdown]
# ## The library's version
#
# `culm/train/trainer.py` is this loop, with what a long run needs: micro-batches, several
# processes, checkpoints, logging. It names no model and no loss; `culm/objective/next_token.py`
# has the loss, and `culm/data/loader.py` the batches. `practice.train` runs it:

# %%
data = practice.Windows(training, context=64, rows=16)
trained = practice.train(config, data, steps=200)
print(f"by hand {validate(model):.2f}, library {validate(trained.model):.2f} nats on held-out text")

# %% [markdown]
# ## An experiment: too little text
#
# Prediction: with enough text, the losses on training and held-out text fall together. With 1,000
# bytes, the model has soon read each of them a hundred times: its training loss goes towards 0,
# and the held-out loss turns around and rises. That is *overfitting*.

# %%
little = practice.Windows(training[:1000], context=64, rows=16)
overfit = config.build(seed=0)
curves = {"training, 1,000 bytes": [], "held out": []}
for number in range(6):
    done = practice.train(overfit, little, steps=40, seed=number)
    curves["training, 1,000 bytes"].append((40 * number + 40, done.losses[-1][1]))
    curves["held out"].append((40 * number + 40, validate(overfit)))
    overfit.train()
show("overfitting", plots.lines, curves, "step", "loss, nats per byte")

# %% [markdown]
# ## Writing
#
# To write, the model predicts, one token is chosen, and it is added to the text. Then again. How
# is it chosen?
#
# - **Greedy**: the most likely one. Correct and dull, and often caught in a loop.
# - **Sampling**: each token with its probability.
# - **Temperature**: divide the logits by t first. Below 1, likely tokens become more likely; at 0
#   it is greedy.
# - **Top-k, top-p**: sample from the k most likely ones only, or from the fewest that reach the
#   sum p. This cuts off the thousands of unlikely tokens, of which one would be hit sooner or
#   later.


# %%
@exercise("sampling.generate")
def generate(model, prompt, count):
    """model: tokens (1, T) -> logits (1, T, V). prompt: ids -> `count` new ids, greedily."""
    raise NotImplementedError


@exercise("sampling.temperature")
def temperature(logits, value):
    """logits: (V,) -> probabilities (V,)."""
    raise NotImplementedError


@exercise("sampling.top_k")
def top_k(logits, k):
    """logits: (V,) -> (V,), all but the k largest are -inf."""
    raise NotImplementedError


@exercise("sampling.top_p")
def top_p(logits, p):
    """logits: (V,) -> (V,), all but the most likely ones that reach p are -inf."""
    raise NotImplementedError


@exercise("sampling.sample")
def sample(probabilities, uniform):
    """probabilities: (V,), uniform: a number in [0, 1) -> a token."""
    raise NotImplementedError


# %% [markdown]
# Expected and seen: sample 2,000 times from five probabilities, and count.

# %%
logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
drawn = [sample(temperature(logits, 1.0), number) for number in torch.rand(2000).tolist()]
seen = [(token, drawn.count(token) / 2000) for token in range(5)]
wanted = [(token, chance) for token, chance in enumerate(logits.softmax(-1).tolist())]
show(
    "sampling",
    plots.expected,
    seen,
    wanted,
    "token",
    "share",
    ("probability", "share of 2,000 samples"),
)
for value in (0.3, 1.0, 3.0):
    print(f"temperature {value}:", [round(p, 2) for p in temperature(logits, value).tolist()])

# %% [markdown]
# ## The demonstration: 856,832 parameters
#
# A model in the style of GPT-2: a table of 256 bytes and one of 256 positions, 4 blocks of width
# 128 with LayerNorm and a feed-forward of 512. The optimizer is Muon, which needs fewer steps
# here than AdamW (lesson 4a). 150 steps are enough to see words and indentation; `culm train
# demo` trains Culm's own demo for 400 longer ones, in about two minutes.

# %%
from culm.model.attention.gqa import GQA
from culm.model.mlp.plain import Plain
from culm.model.norm import LayerNormConfig
from culm.optim.muon import Muon
from culm.optim.schedule import Cosine

demo = practice.small(
    GQA(heads=4, rope=None),
    width=128,
    layers=4,
    learned_positions=True,
    mlp=(Plain(hidden=512, bias=True),),
    norm=LayerNormConfig(),
)
print(f"{sum(p.numel() for p in demo.build(device='meta').parameters()):,} parameters")
writer = practice.train(
    demo, practice.Windows(training, context=96, rows=10), steps=150,
    optimizer=Muon(rate=2e-2), schedule=Cosine(),
)  # fmt: skip
print(f"{bits_per_byte(validate(writer.model), 1, 1):.2f} bits per byte on held-out text")

chance = torch.Generator().manual_seed(0)
for value in (0.0, 0.5, 1.0):
    written = encode("\n    def ")
    with torch.no_grad():
        for _ in range(80):
            last = writer.model(torch.tensor([written]))[0, -1]
            number = float(torch.rand((), generator=chance))
            written.append(sample(temperature(top_k(last, 20), value), number))
    print(f"--- temperature {value}\n{decode(written)}")

# %% [markdown]
# ## What goes wrong in practice
#
# - **No held-out loss.** Several popular training scripts print the training loss only. You
#   cannot see overfitting in it.
# - **Held-out text in the training text.** A web page that was copied ten times is in both.
#   Remove duplicates before you split.
# - **Targets that are not shifted, or shifted twice.** The first gives a loss of nearly 0, the
#   second one that stops early. Print one row with its targets as text before you train (`culm
#   plan` shows it).
# - **Means of means.** Two batches with 10 and 1,000 targets must not count alike. Culm adds sums
#   and divides once (`culm/batch.py`).
# - **A loss of nan.** Usually the learning rate is too high, or a row has no visible target: 0 /
#   0.
