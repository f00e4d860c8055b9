# %% [markdown]
# # Lesson 9b: Preferences without a reward model
#
# **The question.** Lesson 7 turned pairs into a reward model, lesson 8 turned rewards into a
# policy. Two models, two trainings, and sampling in between. Can the pairs train the policy
# *directly*?
#
#     pairs -> reward model -> sampling -> PPO -> policy
#     pairs ------------------- DPO ------------> policy

# %%
import math

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## The derivation
#
# We want a high reward and a small distance from the start: maximise E[r] - beta · KL(pi || start).
# This has an exact solution: weigh each answer of the start by exp(r / beta).


# %%
@exercise("preference.optimal")
def optimal(start, rewards, beta):
    """start: (N,) probabilities of all answers, rewards: (N,) -> the best policy (N,)."""
    raise NotImplementedError


# %% [markdown]
# With a thousand words, there are too many answers to sum over. The trick of DPO (arXiv 2305.18290)
# is to read the formula *backwards*: whatever the policy is, it is the best one for the reward
# beta · log(pi / start), up to a constant. So a policy *is* a reward model.


# %%
@exercise("preference.implied")
def implied(policy, start, beta):
    """Probabilities (N,), (N,) -> the rewards (N,) that the policy is optimal for, mean 0."""
    raise NotImplementedError


start = torch.tensor([0.5, 0.3, 0.15, 0.05])
rewards = torch.tensor([-1.0, 0.0, 0.0, 1.0])
show(
    "leash",
    plots.table,
    torch.stack([optimal(start, rewards, beta) for beta in (10.0, 1.0, 0.5, 0.2, 0.05)]),
    "answer, with the rewards -1, 0, 0, 1",
    "beta",
    list("ABCD"),
    ["10", "1", "0.5", "0.2", "0.05"],
    "the best policy",
    True,
)
print("read backwards:", implied(optimal(start, rewards, 0.5), start, 0.5))

# %% [markdown]
# In the Bradley-Terry loss of lesson 7 only differences of rewards count, so the constant falls
# out. What is left needs the probabilities of two answers under two models:
#
#     loss = -log sigmoid(beta · (log pi/start of the chosen - log pi/start of the rejected))
#
# The log-probability of an answer is the sum over its tokens.


# %%
@exercise("preference.sequence_logprob")
def sequence_logprob(logprobs, learned, mean):
    """logprobs: (N, T) of each token, learned: (N, T) -> (N,), the sum or the mean."""
    raise NotImplementedError


@exercise("preference.dpo")
def dpo(chosen, rejected, beta):
    """Log-ratios to the start (N,), (N,) -> losses (N,)."""
    raise NotImplementedError


# %% [markdown]
# Relatives. IPO (arXiv 2310.12036) stops at a difference of 1 / (2 beta), where DPO pushes on for
# ever. SimPO (arXiv 2405.14734) has no start: it compares log-probabilities per token, and asks for
# a margin. ORPO (arXiv 2403.07691) compares odds, and learns the chosen answer as fine-tuning does.


# %%
@exercise("preference.ipo")
def ipo(chosen, rejected, beta):
    """Log-ratios (N,), (N,) -> losses (N,)."""
    raise NotImplementedError


@exercise("preference.simpo")
def simpo(chosen, rejected, beta, gamma):
    """Mean log-probabilities (N,), (N,) -> losses (N,)."""
    raise NotImplementedError


@exercise("preference.odds")
def odds(logprob):
    """log p: (N,) -> log of p / (1 - p), (N,)."""
    raise NotImplementedError


away = torch.linspace(-6, 12, 60)
zero = torch.zeros(60)
curves = {
    "DPO, beta 0.5": dpo(away, zero, 0.5),
    "IPO, beta 0.1, a tenth": ipo(away, zero, 0.1) / 10,
    "SimPO, beta 0.5, gamma 1": simpo(away, zero, 0.5, 1.0),
}
show(
    "losses",
    plots.lines,
    {name: list(zip(away.tolist(), loss.tolist(), strict=True)) for name, loss in curves.items()},
    "difference of the two answers",
    "loss",
)

# %% [markdown]
# ## The library's version
#
# `culm/objective/preference.py` has nine losses by name. The frozen start is a copy
# (`culm/objective/reference.py`), or the model itself with its adapters switched off, or numbers
# that were computed once. The world is that of lesson 7: people who like vowels compare words.

# %%
from culm.engine.sampling import Sampling
from culm.objective import preference as library
from culm.objective.preference import Preference

chance = torch.Generator().manual_seed(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word():
    return "".join(LETTERS[n] for n in torch.randint(26, (6,), generator=chance).tolist())


def value(text):
    return sum(letter in "aeiou" for letter in text)


def judged(first, second):
    wins = torch.rand((), generator=chance) < 1 / (1 + math.exp(value(second) - value(first)))
    return (first, second) if wins else (second, first)


def row(text):
    return dialogues.dialogue("A word?", text)


base = practice.train(
    dialogues.chat_model(width=32, layers=1, heads=2),
    dialogues.Rows([row(word()) for _ in range(1000)]), 120, rate=1e-2,
).model  # fmt: skip
pairs = dialogues.Rows([tuple(map(row, judged(word(), word()))) for _ in range(2000)])


def run(steps, **settings):
    model = dialogues.chat_model(width=32, layers=1, heads=2).build(seed=0)
    model.load_state_dict(base.state_dict())
    objective = Preference(**settings)
    return practice.train(model, pairs, steps, rate=2e-3, objective=objective)


def my_loss(chosen, rejected, config):
    return dpo(chosen, rejected, config.beta)


ours = run(20, beta=0.5)
with replaced(library, "preference_loss", my_loss):
    yours = run(20, beta=0.5)
show("training", plots.expected, yours.losses, ours.losses, "step", "loss", ("library", "yours"))

# %% [markdown]
# ## An experiment: value against distance
#
# Prediction: the words get more vowels, and a smaller beta lets the policy go further. And one
# that surprises many: the log-probability of the *chosen* answers falls too. DPO only asks that
# that of the rejected ones falls more.


# %%
def measured(model):
    """The mean value of 150 words, and how many nats they are away from the start."""
    prompts = ["A word?"] * 150
    words = dialogues.replies(model, prompts, Sampling(temperature=1.0, seed=0), max_tokens=8)
    batch = dialogues.padded([row(text) for text in words])
    own = batch.targets >= 0
    with torch.no_grad():
        new, old = (
            sequence_logprob(one.logprobs(batch.tokens, batch.targets), own, False)
            for one in (model, base)
        )
    print("such as", words[:4])
    return sum(map(value, words)) / len(words), (new - old).mean().item()


found, kept = {"start": measured(base)[0]}, {}
for name, settings in {
    "beta 2": {"beta": 2.0}, "beta 0.5": {"beta": 0.5}, "beta 0.1": {"beta": 0.1},
    "ipo 0.5": {"loss": "ipo", "beta": 0.5},
}.items():  # fmt: skip
    done = run(150, **settings)
    found[name], far = measured(done.model)
    kept[name] = [(one.step, one.metrics["logprob_chosen"]) for one in done.steps]
    last = done.steps[-1].metrics
    print(f"{name:<9} {found[name]:.2f} vowels, {far:5.1f} nats, accuracy {last['accuracy']:.2f}")
show("values", plots.columns, found, "policy", "vowels of a word of six letters")
show("chosen", plots.lines, kept, "step", "log-probability of the chosen answers, nats")

# %% [markdown]
# In our run beta 0.1 went too far: as a reward model it agrees with the pairs as often as beta 0.5,
# but it ends each answer at once. All that the loss asks is a *difference*, so the probability may
# go to a text that is in no pair, here the empty one.

# %% [markdown]
# ## What goes wrong in practice
#
# - **Both probabilities fall.** Watch `logprob_chosen`. `nll` adds the loss of fine-tuning on the
#   chosen answer, which holds it.
# - **Longer answers.** A sum over more tokens can move further. Average (`length: mean`), or weigh
#   the rest of the longer answer less (`tail`).
# - **The pairs are from another model.** Their answers are unlikely under the start, and the
#   ratios of unlikely texts are noise. Fine-tune on the chosen ones first.
# - **A rate for fine-tuning.** DPO needs about a tenth of it.
# - **Accuracy is not quality.** It says how often the policy, as a reward model, agrees with the
#   pairs. Sample, and compare.
