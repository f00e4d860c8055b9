# %% [markdown]
# # Lesson 8: Proximal policy optimisation
#
# **The question.** There is a reward for complete answers, and no right answer to copy. The model
# must try, and learn from what it earned. But an answer has many tokens: which of them was good?
# And how far may the model move before what it learned is no longer true?
#
#     policy writes answers -> rewards -> which tokens did better than expected? -> small step
#          ^                                                                           |
#          +---------------------------------------------------------------------------+

# %%
from dataclasses import dataclass

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## What a token is worth
#
# A language model that acts is called a *policy*; each token is an action. The *return* at a token
# is what is earned from there to the end. If a token was followed by a high return, make it more
# likely: that is the policy gradient.


# %%
@exercise("ppo.returns")
def returns(rewards, gamma):
    """rewards: (T,) -> (T,). gamma: what a reward one step later is worth."""
    raise NotImplementedError


print(returns(torch.tensor([0.0, 0.0, 0.0, 1.0]), 0.9))

# %% [markdown]
# But a return of 0.8 says little. Is that good? So a second model, the *critic*, estimates the
# value of each state: what the policy earns from here on average. The *advantage* is return minus
# value: did it go better than expected?
#
# The return is noisy: it depends on all tokens that follow. The critic is calm, and wrong.
# *Generalised advantage estimation* (arXiv 1506.02438) mixes: the error of one step is
#
#     delta_t = reward_t + gamma · value_{t+1} - value_t
#
# and the advantage adds up later deltas, each weighed by gamma · decay. decay = 0 trusts the
# critic, decay = 1 the return.


# %%
@exercise("ppo.gae")
def gae(rewards, values, gamma, decay):
    """rewards, values: (T,) -> advantages (T,)."""
    raise NotImplementedError


# %% [markdown]
# ## An experiment: noise against error
#
# A chain of 20 steps earns a random reward of mean 0 each. The critic is wrong: it is off by a
# random number in each state. Prediction: with a larger decay the estimate of the first advantage
# depends less on the critic (smaller bias), and varies more between episodes.

# %%
chance = torch.Generator().manual_seed(0)
noise = torch.randn(300, 20, generator=chance)
wrong = torch.randn(30, 20, generator=chance)  # 30 critics; the true value is 0 everywhere
spread, bias = [], []
for decay in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0):
    found = torch.stack(
        [
            torch.stack([gae(row, critic, 1.0, decay)[0] + critic[0] for row in noise[:60]])
            for critic in wrong[:12]
        ]
    )
    spread.append((decay, found.std(1).mean().item()))
    bias.append((decay, found.mean(1).std().item()))
show(
    "trade",
    plots.lines,
    {"noise: deviation between episodes": spread, "error: deviation between critics": bias},
    "decay",
    "of the estimated return",
)

# %% [markdown]
# Finally the advantages of a batch get mean 0 and deviation 1, so that the size of rewards does
# not change the size of steps.


# %%
@exercise("ppo.whitened")
def whitened(advantages):
    """(N,) -> (N,)."""
    raise NotImplementedError


# %% [markdown]
# ## A leash
#
# The reward is a guess (lesson 7), so the policy must not run away from its start. The distance
# is the KL divergence: how much less likely is what the policy says under the start? Each token
# is charged for it; the last one also gets the reward of the answer.


# %%
@exercise("divergence.k1")
def k1(new, reference):
    """Log-probabilities of the sampled tokens (B, T) -> (B, T), in nats."""
    raise NotImplementedError


@exercise("divergence.k3")
def k3(new, reference):
    """The same in mean, and never negative (joschu.net/blog/kl-approx.html)."""
    raise NotImplementedError


@exercise("ppo.token_rewards")
def token_rewards(reward, away, cost):
    """reward: a number, away: (T,) nats, cost: of a nat -> (T,)."""
    raise NotImplementedError


start = torch.zeros(10)
direction = torch.randn(10, generator=chance)
true, means, deviations = [], [], {"k1": [], "k3": []}
for far in torch.linspace(0, 1.6, 9).tolist():
    policy = (start + far * direction).log_softmax(-1)
    first = start.log_softmax(-1)
    drawn = torch.multinomial(policy.exp(), 4000, replacement=True, generator=chance)
    true.append((far, (policy.exp() * (policy - first)).sum().item()))
    means.append((far, k3(policy[drawn], first[drawn]).mean().item()))
    for name, estimate in (("k1", k1), ("k3", k3)):
        deviations[name].append((far, estimate(policy[drawn], first[drawn]).std().item()))
show(
    "divergence",
    plots.expected,
    means,
    true,
    "distance of the logits",
    "KL divergence, nats",
    ("exact", "mean of k3 over 4,000 samples"),
)
show("estimates", plots.lines, deviations, "distance of the logits", "deviation of one estimate")

# %% [markdown]
# What should a nat cost? Instead of guessing, give a target and let the cost adapt: dearer if the
# policy is too far away, cheaper if not (arXiv 1909.08593).


# %%
@exercise("divergence.next_cost")
def next_cost(cost, kl, target, completions, horizon):
    """kl: nats of a completion, measured over this many -> the new cost."""
    raise NotImplementedError


# %% [markdown]
# ## The clip
#
# Sampling is slow, so the same answers are used for several steps. After the first of them, the
# policy is not the one that sampled: weigh each token by the ratio of both probabilities. If the
# ratio leaves [1 - clip, 1 + clip] in the direction that the advantage wants, its gradient is cut
# (arXiv 1707.06347). If a step went the *wrong* way, the gradient stays: that is what the minimum
# is for.


# %%
@exercise("ppo.clipped")
def clipped(new, old, advantages, clip):
    """Log-probabilities new, old: (B, T), advantages: (B, T) -> losses (B, T)."""
    raise NotImplementedError


@exercise("ppo.value_loss")
def value_loss(values, old, returned, clip):
    """(B, T) each -> (B, T). old: the values before the update."""
    raise NotImplementedError


ratios = torch.linspace(0.4, 1.8, 50)
show(
    "clip",
    plots.lines,
    {
        f"advantage {sign:+d}": list(
            zip(
                ratios.tolist(),
                clipped(
                    ratios.log()[None], torch.zeros(1, 50), torch.full((1, 50), float(sign)), 0.2
                )[0].tolist(),
                strict=True,
            )
        )
        for sign in (1, -1)
    },
    "ratio",
    "loss",
)

# %% [markdown]
# ## The library's version
#
# `culm/objective/ppo.py` has the objective, `culm/objective/policy.py` the formulas above,
# `culm/rollout/buffer.py` samples answers and scores them. The task: write lower-case letters.
# The model has never been trained, so 1 byte in 10 is one by accident.

# %%
from culm.objective import ppo
from culm.objective.ppo import PPO
from culm.task.task import Question


@dataclass(frozen=True)
class LowerCase:
    """The share of lower-case letters among the first six characters is the score."""

    name: str = "lower case"

    def question(self, split, index, seed):
        return Question(f"{(index + seed) % 7}", "abcdef")

    def score(self, question, reply):
        return sum("a" <= letter <= "z" for letter in reply[:6]) / 6


def run(steps, rate=1e-2, weight=1.0, **more):
    model = dialogues.chat_model(width=32, layers=1, heads=2).build(seed=0)
    objective = PPO(**more).build(model, practice.no_other_model, 0)
    reward = {"kind": "task", "weight": weight, "clip": 1.0}
    data = dialogues.rollouts(objective, LowerCase(), reward=reward, max_tokens=6, epochs=2)
    return practice.fit(objective, data, steps, rate)


def metric(steps, name):
    return [(one.step, one.metrics[name]) for one in steps]


def my_advantages(rewards, values, learned, gamma, decay):
    found = torch.zeros_like(values)
    for row, own in enumerate(learned):
        found[row, own] = gae(rewards[row, own], values[row, own], gamma, decay)
    return found


ours = metric(run(12), "reward")
with replaced(ppo, "generalised_advantages", my_advantages):
    yours = metric(run(12), "reward")
show("training", plots.expected, yours, ours, "step", "reward", ("library", "yours"))

# %% [markdown]
# ## An experiment: a control, and two leashes
#
# Prediction: with the true reward the score rises towards 1. With the reversed reward, it falls to
# 0: the gain comes from the reward and from nothing else. A dear leash keeps the policy near its
# start, and low.

# %%
runs = {
    "reward": run(50, kl=0.002),
    "reversed reward": run(50, kl=0.002, weight=-1.0),
    "a nat costs 0.3": run(50, kl=0.3),
}
show(
    "control",
    plots.lines,
    {name: metric(steps, "reward_task") for name, steps in runs.items()},
    "step",
    "share of lower-case letters",
)
show(
    "leash",
    plots.lines,
    {name: metric(steps, "kl") for name, steps in runs.items() if "reversed" not in name},
    "step",
    "nats of an answer away from the start",
)
for name, steps in runs.items():
    scores = [value for _, value in metric(steps, "reward_task")[-5:]]
    print(f"{name:<16} {sum(scores) / 5:.2f}, {steps[-1].metrics['kl']:.1f} nats away")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The reward rises, the answers get worse.** Read answers, at every evaluation. Watch the KL
#   divergence next to the reward.
# - **A reward that is too easy to earn.** The policy finds the shortest way: empty answers, or
#   the same phrase. A control with shuffled rewards shows what is due to the reward.
# - **The critic starts from nothing.** Its first values are noise, and so are the advantages.
#   `train.objective.critic` starts it from a reward model; watch `explained_variance`.
# - **Dropout.** With it, the ratio is not 1 even without an update. Culm switches it off.
# - **Answers that were cut at the limit** have no end. Penalise them (`missing_eos`), or leave
#   them out.
# - **Too many epochs on one rollout.** `clip_fraction` above 0.3 says so; `kl_stop` ends them.
