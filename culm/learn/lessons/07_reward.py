# %% [markdown]
# # Lesson 7: Reward models
#
# **The question.** For "reverse these letters" there is one right answer. For "write a friendly
# letter" there is none, and people cannot even give a number: is this letter a 7 or an 8? But
# shown two letters, they say quickly which one is *better*. How does a program learn from such
# pairs what people like? And what happens when another program then tries to please it?
#
#     question, answer A, answer B, "A is better"   ->   reward model: (question, answer) -> number

# %%
import math

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## From comparisons to numbers
#
# Bradley and Terry (1952) rated chess players so: everybody has a strength r, and A wins against B
# with the probability sigmoid(r_A - r_B). Only differences count. The model that makes the seen
# choices most likely minimises -log sigmoid(r_chosen - r_rejected).


# %%
@exercise("reward.better")
def better(chosen, rejected):
    """Rewards (N,), (N,) -> the probability that the first is preferred, (N,)."""
    raise NotImplementedError


@exercise("reward.bradley_terry")
def bradley_terry(chosen, rejected, margin):
    """-> losses (N,). margin: by how much the chosen one must be better."""
    raise NotImplementedError


# %% [markdown]
# People make mistakes. If a share of the pairs is assumed to be swapped, the loss of a pair that
# is very clear to the model no longer falls to 0, and no reward has to grow without limit. The
# *margin ranking* loss has another idea: a pair that is right by a margin costs nothing.


# %%
@exercise("reward.smoothed")
def smoothed(chosen, rejected, share):
    """-> losses (N,)."""
    raise NotImplementedError


@exercise("reward.margin_ranking")
def margin_ranking(chosen, rejected, margin):
    """-> losses (N,)."""
    raise NotImplementedError


away = torch.linspace(-4, 6, 60)
zero = torch.zeros(60)
losses = {
    "Bradley-Terry": bradley_terry(away, zero, 0.0),
    "the same, 10 % swapped": smoothed(away, zero, 0.1),
    "margin ranking": margin_ranking(away, zero, 1.0),
}
show(
    "losses",
    plots.lines,
    {name: list(zip(away.tolist(), loss.tolist(), strict=True)) for name, loss in losses.items()},
    "reward of the chosen answer minus that of the rejected one",
    "loss",
)

# %% [markdown]
# Often people rank more than two answers. The order is a row of choices: the best of all, then
# the best of those that are left (Plackett-Luce). For two answers that is Bradley-Terry again.


# %%
@exercise("reward.ranking")
def ranking(rewards):
    """Rewards from the best to the worst answer, (N,) -> a loss without axes."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# A reward model is a language model whose output head gives one number for each token instead of
# one for each word. The number at the *last* token counts: only there has the model read all of
# the answer. `culm/objective/reward.py` has the objective, `culm/objective/reward_losses.py` the
# losses, `culm/adapt/heads.py` the new head.


# %%
@exercise("reward.at_the_end")
def at_the_end(scores, lengths):
    """scores: (B, T), lengths: (B,) -> (B,), the score at the last real token of each row."""
    raise NotImplementedError


# %% [markdown]
# Our people like vowels: the true value of a word is its number of vowels. They compare two words
# and are often wrong when it is close, exactly as Bradley and Terry say.

# %%
from culm.adapt.heads import with_scalar_head
from culm.objective import reward as library
from culm.objective.reward import Reward

chance = torch.Generator().manual_seed(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word():
    return "".join(LETTERS[n] for n in torch.randint(26, (6,), generator=chance).tolist())


def value(text):
    return sum(letter in "aeiou" for letter in text)


def judged(first, second):
    """The pair in the order of a person who is sometimes wrong."""
    wins = torch.rand((), generator=chance) < 1 / (1 + math.exp(value(second) - value(first)))
    return (first, second) if wins else (second, first)


words = [judged(word(), word()) for _ in range(2500)]
pairs = [tuple(dialogues.dialogue("A word?", one) for one in pair) for pair in words]


def reward_model(seed=0):
    model = dialogues.chat_model(width=32, layers=1, heads=2).build(seed)
    with_scalar_head(model, seed)
    return model


def learned(count, steps, objective=Reward(), **more):
    rows = dialogues.Rows(pairs[:count], size=16)
    return practice.train(reward_model(), rows, steps, objective=objective, **more)


def my_bradley_terry(chosen, rejected, margin, smoothing):
    return bradley_terry(chosen, rejected, margin)


ours = learned(2000, 20)
with replaced(library, "bradley_terry", my_bradley_terry):
    yours = learned(2000, 20)
show("training", plots.expected, yours.losses, ours.losses, "step", "loss", ("library", "yours"))

# %% [markdown]
# ## An experiment: does it know how sure it is?
#
# Train on 2,000 pairs and look at 500 others. Prediction: of the pairs where the model says 80 %,
# about 80 % were judged so. The judges are wrong often, so nobody can be right in all of them.


# %%
from culm.model.context import Context


@torch.no_grad()
def rewards(model, texts):
    """The reward of each text, (N,)."""
    batch = dialogues.padded([dialogues.dialogue("A word?", text) for text in texts])
    scores = model.head_scores(batch.tokens, Context(batch.positions, padding=batch.padding))
    return at_the_end(scores[..., 0], batch.lengths)


model = learned(2000, 250).model
held_out = words[2000:]
first = rewards(model, [pair[0] for pair in held_out])
second = rewards(model, [pair[1] for pair in held_out])
sure = better(first, second)
known = [(value(a) > value(b)) + 0.5 * (value(a) == value(b)) for a, b in held_out]
print(f"judged as the model says: {(sure > 0.5).float().mean():.2f}")
print(f"judged as the true values say: {sum(known) / len(known):.2f}")
both = torch.cat((sure, 1 - sure))
seen = []
for low in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8):
    inside = (both >= low) & (both < low + 0.15)
    if inside.any():
        wins = inside[: len(sure)].sum() / inside.sum()
        seen.append((both[inside].mean().item(), wins.item()))
show(
    "calibration",
    plots.expected,
    seen,
    [(0.05, 0.05), (0.95, 0.95)],
    "probability by the model",
    "share that was judged so",
    ("equal", "held-out pairs"),
)

# %% [markdown]
# ## An experiment: too much of a good thing
#
# The reward model is a guess at the true value. What if we choose from n words the one that it
# likes most? The larger n, the further from what the policy would say: log n - (n - 1) / n nats
# away. Prediction: the reward rises all the way. The true value rises too with the model of 2,000
# pairs. With one of 25 pairs, it soon stops and falls: from there on the search finds the errors
# of the model. That is *over-optimisation* (arXiv 2210.10760), Goodhart's law.


# %%
@exercise("shaping.best_of")
def best_of(n):
    """-> how many nats the best of n samples is away from one sample."""
    raise NotImplementedError


few = learned(25, 250).model
many = [word() for _ in range(4096)]
values = torch.tensor([float(value(one)) for one in many])
curves = {}
for name, judge in (("2,000 pairs", model), ("25 pairs", few)):
    scored = torch.cat([rewards(judge, many[at : at + 512]) for at in range(0, 4096, 512)])
    curves[name] = []
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        picked = scored.view(-1, n).argmax(1)
        chosen = values.view(-1, n).gather(1, picked[:, None])
        curves[name].append((best_of(n), chosen.mean().item()))
curves["the true value decides"] = [
    (best_of(n), values.view(-1, n).max(1).values.mean().item()) for n in (1, 4, 16, 64, 256)
]
show("best-of-n", plots.lines, curves, "nats from the policy", "true value of the chosen word")

# %% [markdown]
# One remedy: several reward models, or heads (`train.objective.heads`), and caution where they
# differ (`culm/rollout/reward/ensemble.py`).


# %%
@exercise("shaping.cautious")
def cautious(scores, k):
    """The scores of several models for one answer -> mean minus k standard deviations."""
    raise NotImplementedError


print(
    "they agree:", cautious([2.0, 2.1, 1.9], 1.0), " they differ:", cautious([6.0, 0.5, -0.5], 1.0)
)

# %% [markdown]
# ## Shaping
#
# Rewards are added: the task, a bonus for the form, a penalty for length. Each is a chance to be
# misunderstood. A penalty that falls evenly tells the policy in which direction to go; a step at
# the limit does not (`culm/rollout/reward/length.py`, arXiv 2503.14476).


# %%
@exercise("shaping.too_long")
def too_long(tokens, longest, margin):
    """-> the penalty, from 0 to -1."""
    raise NotImplementedError


show(
    "penalty",
    plots.lines,
    {"penalty": [(n, too_long(n, 100, 40)) for n in range(0, 141, 5)]},
    "tokens of an answer",
    "penalty",
)

# %% [markdown]
# Is there any bonus that cannot be exploited? Yes: give each state a *potential*, and pay the
# difference that a step makes. Then any way from start to end earns the same in sum, and the best
# policy stays the best (Ng et al., 1999; `culm/rollout/reward/potential.py`).


# %%
@exercise("shaping.shaped")
def shaped(rewards, potentials, gamma):
    """rewards: of each step; potentials: before each step -> the shaped rewards, a list."""
    raise NotImplementedError


for way in ([0.0, 0.9, 0.1], [0.0, 0.1, 0.5, 0.9, 0.2]):
    steps = shaped([0.0] * (len(way) - 1) + [1.0], way, 1.0)
    print([round(one, 2) for one in steps], "sum", round(sum(steps), 6))

# %% [markdown]
# ## What goes wrong in practice
#
# - **Longer is better.** In most collections of pairs the chosen answer is longer. The model
#   learns that first, and the policy after it. Compare with a model that sees the length alone.
# - **Pairs from other models.** A reward model is good where its pairs come from. Collect pairs of
#   answers of *your* policy, and again after it has changed.
# - **Padding at the end.** The score at the last column of a batch is that of padding. Take the
#   last real token.
# - **More than one epoch.** Reward models overfit in the second one already.
# - **Rewards drift.** Only differences are learned, so the mean is arbitrary. `centering` keeps
#   it near 0.
