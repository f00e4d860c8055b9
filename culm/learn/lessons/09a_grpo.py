# %% [markdown]
# # Lesson 9a: Groups and verifiable rewards
#
# **The question.** PPO needs a critic, as large as the policy. And a reward model is a guess that
# can be deceived. For questions with a known answer (sums, programs, puzzles) neither is needed:
# the answer can be *checked*, and several answers to one question can be compared with each other.
#
#     question -> 8 answers -> checked: 1 0 0 1 0 0 0 1 -> minus their mean -> advantages
#
# This is *group relative policy optimisation* (GRPO, arXiv 2402.03300), which trained the first
# open models that reason.

# %%
import copy

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show
from culm.optim.muon import Muon
from culm.task.countdown import evaluated
from culm.task.letters import Letters

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Rewards that can be verified
#
# "Make 20 from 2, 3, 4." Any expression that does is right, so a comparison of texts would be
# unfair, and a check of the value alone would be deceived: `20` has the value 20. A policy finds
# every gap of a check within a few hundred steps. `evaluated` gives the value of an expression and
# its numbers in order of size, or None.


# %%
@exercise("grpo.verified")
def verified(solution, reply):
    """A right expression, and the reply of a model -> 1.0 or 0.0."""
    raise NotImplementedError


for reply in ("4*(2+3)", "20", "2+3*4", "ten times two"):
    print(f"{reply:<15} {evaluated(reply)!s:<20} {verified('(2+3)*4', reply)}")

# %% [markdown]
# ## Compared with the group
#
# The mean reward of the group takes the place of the critic: an answer was good if it was better
# than the others to the same question. Then divide by the deviation of the group.


# %%
@exercise("grpo.advantages")
def advantages(rewards):
    """rewards: (groups, answers) -> (groups, answers)."""
    raise NotImplementedError


rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]])
show(
    "advantages",
    plots.table,
    advantages(rewards),
    "answer",
    "question",
    title="advantages; the last group had all answers right",
    numbers=True,
)

# %% [markdown]
# A reward is part of its own baseline, which shrinks it. RLOO (arXiv 2402.14740) leaves it out: the
# baseline is the mean of the *others*.


# %%
@exercise("grpo.leave_one_out")
def leave_one_out(rewards):
    """rewards: (groups, answers) -> (groups, answers)."""
    raise NotImplementedError


# %% [markdown]
# If all answers of a group earn the same, all advantages are 0: nothing is learned, and the
# sampling was for nothing. With a pass rate of p and G answers that happens with the probability
# p^G + (1 - p)^G. DAPO (arXiv 2503.14476) samples other questions and puts their groups in these
# places.


# %%
@exercise("grpo.mixed")
def mixed(rewards):
    """The rewards of a group, a list -> True or False."""
    raise NotImplementedError


@exercise("grpo.replaced")
def refilled(groups, others):
    """Lists of groups, each a list of rewards -> as many groups as at first."""
    raise NotImplementedError


chance = torch.Generator().manual_seed(0)
rates = torch.linspace(0.02, 0.98, 13).tolist()
seen = []
for p in rates:
    drawn = (torch.rand(400, 8, generator=chance) < p).float()
    seen.append((p, sum(mixed(row.tolist()) for row in drawn) / 400))
line = [(p, 1 - p**8 - (1 - p) ** 8) for p in rates]
show("mixed", plots.expected, seen, line, "pass rate", "share of groups of 8 that teach something")

# %% [markdown]
# ## Small differences with names
#
# The papers after GRPO change a line each. You now write the four that matter.
#
# *What is averaged?* Averaging each answer by its own length makes a token of a long wrong answer
# cheap: models grow verbose. Dr. GRPO (arXiv 2503.20783) divides by the limit instead, DAPO counts
# all tokens alike.


# %%
@exercise("grpo.averaged")
def averaged(losses, learned, by, longest):
    """losses, learned: (N, T); by: tokens, sequences or constant -> a tensor without axes."""
    raise NotImplementedError


# %% [markdown]
# *Which ratio?* GSPO (arXiv 2507.18071): a reward belongs to a complete answer, so clip the ratio
# of the answer: the geometric mean of its tokens.


# %%
@exercise("grpo.sequence_ratio")
def sequence_ratio(new, old, learned):
    """Log-probabilities new, old: (N, T), learned: (N, T) -> (N,)."""
    raise NotImplementedError


# %% [markdown]
# *Which clip?* With the same bound on both sides, an unlikely token can hardly grow: 1.2 times
# 0.01 is 0.012. DAPO has a higher upper bound, which keeps the policy diverse.


# %%
@exercise("grpo.asymmetric")
def asymmetric(ratio, advantage, low, high):
    """ratio: (N, T), advantage: (N,) -> losses (N, T)."""
    raise NotImplementedError


ratios = torch.linspace(0.4, 1.8, 50)
show(
    "clip",
    plots.lines,
    {
        f"advantage {sign:+d}": list(
            zip(
                ratios.tolist(),
                asymmetric(ratios[None], torch.tensor([float(sign)]), 0.2, 0.4)[0].tolist(),
                strict=True,
            )
        )
        for sign in (1, -1)
    },
    "ratio",
    "loss",
)

# %% [markdown]
# *What is the control?* The same run with rewards in random order over all answers. If it gains
# too, the gain does not come from the reward: some published gains were of this kind.


# %%
@exercise("grpo.shuffled")
def shuffled(rewards, order):
    """rewards: (groups, answers), order: (groups · answers,) -> (groups, answers)."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/objective/grpo.py` has all variants as settings, `culm/objective/policy.py` the formulas,
# `culm/rollout/groups.py` the groups. First a model that writes letters backwards, fine-tuned for
# a short time; then your advantages in the library's run:

# %%
from culm.objective import grpo
from culm.objective.grpo import GRPO

task = Letters(name="reverse", operation="reverse", shortest=2, longest=3)
rows = dialogues.Rows(dialogues.examples(task, 2000), size=16)
start = practice.train(dialogues.chat_model(), rows, 120, optimizer=Muon(rate=2e-2)).model


def run(steps, shuffled=False, **settings):
    model = copy.deepcopy(start)
    objective = GRPO(**settings).build(model, practice.no_other_model, 0)
    data = dialogues.rollouts(objective, task, max_tokens=8, group=8, shuffled=shuffled)
    return model, practice.fit(objective, data, steps, rate=1e-3)


def my_advantages(rewards, group, scale, baseline):
    return advantages(rewards.view(-1, group)).flatten()


def reward(steps):
    return [(one.step, one.metrics["reward"]) for one in steps]


_, ours = run(8)
with replaced(grpo, "group_advantages", my_advantages):
    _, yours = run(8)
show(
    "training", plots.expected, reward(yours), reward(ours), "step", "reward", ("library", "yours")
)

# %% [markdown]
# ## An experiment: variants, and the control
#
# Prediction: all variants learn; at this size they hardly differ. The control learns nothing.

# %%
curves, scores = {}, {"start": dialogues.accuracy(start, task, 60)}
for name, settings in {
    "grpo": {}, "dapo": {"variant": "dapo"}, "rloo": {"variant": "rloo", "kl": 0.0},
    "control": {"shuffled": True},
}.items():  # fmt: skip
    model, steps = run(40, **settings)
    curves[name], scores[name] = reward(steps), dialogues.accuracy(model, task, 60)
print({name: round(score, 2) for name, score in scores.items()})
show("rewards", plots.lines, curves, "step", "reward")
show("scores", plots.columns, scores, "policy", "share of exact answers to new questions")

# %% [markdown]
# In our run the three variants went from 0.58 to 0.72 and 0.75, and the control fell to 0.32: steps
# in random directions are not harmless.

# %% [markdown]
# ## What goes wrong in practice
#
# - **Nothing to compare.** If the start is never right, all groups are equal. Fine-tune first, or
#   choose easier questions (`train.rollout.curriculum` does it by pass rate).
# - **The engine is not the trainer.** Other precision or order gives other log-probabilities;
#   `sampler_difference` shows how much, `correction` weighs it.
# - **Answers are cut at the limit**, and earn nothing, though they were on the way. Watch
#   `stopped`.
# - **The check is the weak point.** Programs that print the expected output; answers that list all
#   options. Read what earns 1.
# - **Collapse of diversity.** `entropy` falls to 0, groups become equal. A higher upper clip, a
#   higher temperature, or less training.
