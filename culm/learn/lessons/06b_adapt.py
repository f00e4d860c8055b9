# %% [markdown]
# # Lesson 6b: Curriculum and adapters
#
# **The question.** Two ways to fine-tune with less. Does it help to show easy examples first, as
# at school? And must all weights be trained, or is a small *adapter* enough?

# %%
import copy
from dataclasses import dataclass

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show
from culm.optim.muon import Muon
from culm.task.letters import Letters

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Easy first
#
# Sort the examples by a difficulty: their length, how rare their words are, or the loss of
# another model. At step t, read only the easier part. *Competence* (arXiv 1903.09848) lets the
# part grow with a root: fast at first, so that most steps see the hard examples too. *Baby steps*
# add one bucket after the other.


# %%
@exercise("adapt.competence")
def competence(step, steps, initial):
    """-> the share of the sorted examples, from `initial` at step 0 to 1."""
    raise NotImplementedError


@exercise("adapt.buckets")
def buckets(step, steps, count):
    """-> the share of the sorted examples in all buckets so far."""
    raise NotImplementedError


STEPS = 160
show(
    "curricula",
    plots.lines,
    {
        "competence": [(t, competence(t, STEPS, 0.1)) for t in range(STEPS)],
        "baby steps": [(t, buckets(t, STEPS, 4)) for t in range(STEPS)],
    },
    "step",
    "share of the examples that may be read",
)

# %% [markdown]
# ## An experiment: does the order matter?
#
# Two to four letters are to be written backwards; four are harder than two. The control is the
# same curriculum from hard to easy. Prediction: reading the easy part first helps early, and the
# order matters less at the end. Papers disagree on how much it helps: so measure.

# %%
task = Letters(name="reverse", operation="reverse", shortest=2, longest=4)
examples = sorted(dialogues.examples(task, 2000), key=lambda row: len(row[0]))


def part(step):
    return 0, max(1, int(competence(step, STEPS, 0.1) * len(examples)))


runs = {
    "at random": dialogues.Rows(examples, part=None),
    "easy first": dialogues.Rows(examples, part=part),
    "hard first": dialogues.Rows(examples[::-1], part=part),
}
scores = {}
for name, rows in runs.items():
    done = practice.train(dialogues.chat_model(), rows, STEPS, optimizer=Muon(rate=2e-2))
    scores[name] = dialogues.accuracy(done.model, task, 60)
print(scores)
show("order", plots.columns, scores, "order of the examples", "share of exact answers")

# %% [markdown]
# In our run the easy part first was far ahead: 0.70 against 0.25 at random, and nothing from hard
# to easy. That is one seed of a short run, on a task whose short examples teach the long ones. In
# other experiments it often did not help (`docs/recipes/curriculum.md`).

# %% [markdown]
# ## LoRA
#
# A layer computes W x with a large matrix W. What fine-tuning changes of W often has a low rank.
# So freeze W, and learn the change as a product of two thin matrices (arXiv 2106.09685):
#
#     y = W x + alpha / rank · B A x        A: (rank, inputs), B: (outputs, rank)
#
# A starts at random, B at zero: at the first step the model is unchanged.


# %%
@exercise("adapt.lora")
def lora(x, weight, a, b, alpha):
    """x: (N, inputs), weight: (outputs, inputs) -> (N, outputs)."""
    raise NotImplementedError


@exercise("adapt.trainable")
def trainable(outputs, inputs, rank):
    """How many numbers are trained."""
    raise NotImplementedError


@exercise("adapt.merged")
def merged(weight, a, b, alpha):
    """-> (outputs, inputs): one matrix that does the work of all three."""
    raise NotImplementedError


show(
    "sizes",
    plots.lines,
    {
        f"rank {rank}": [
            (width, trainable(width, width, rank) / width**2) for width in range(64, 4097, 64)
        ]
        for rank in (4, 16, 64)
    },
    "width of a square layer",
    "trained numbers, share of the full matrix",
)

# %% [markdown]
# DoRA (arXiv 2402.09353) learns the length of each row separately from its direction: the row of
# the merged matrix gets a learned norm.


# %%
@exercise("adapt.dora")
def dora(weight, a, b, alpha, magnitude):
    """magnitude: (outputs,) -> the merged matrix (outputs, inputs)."""
    raise NotImplementedError


# %% [markdown]
# ## The library's version
#
# `culm/adapt/lora.py` replaces layers by adapted ones, `culm/adapt/merge.py` merges them and
# compares the logits before and after. The curriculum is `culm/data/curriculum.py`. Your function
# in the library's layer:

# %%
from culm.adapt.lora import LoRA, LoRALinear, disabled
from culm.adapt.merge import merge
from culm.task.task import Question, exact

reverse = Letters(name="reverse", operation="reverse", shortest=2, longest=3)


@dataclass(frozen=True)
class Copy:
    """Write the same letters again."""

    name: str = "copy"

    def question(self, split, index, seed):
        letters = reverse.question(split, index, seed).answer
        return Question(f"Copy: {letters}", letters)

    def score(self, question, reply):
        return exact(question.answer, reply)


def my_forward(layer, x):
    alpha = layer.scale * len(layer.a)
    return lora(x.flatten(0, -2), layer.base.weight, layer.a, layer.b, alpha).view(
        *x.shape[:-1], -1
    )


base = practice.train(
    dialogues.chat_model(), dialogues.Rows(dialogues.examples(reverse, 2000)), 240,
    optimizer=Muon(rate=2e-2),
).model  # fmt: skip
rows = dialogues.Rows(dialogues.examples(Copy(), 2000))


def adapted(rank):
    model = copy.deepcopy(base)
    LoRA(rank=rank, alpha=2 * rank).apply(model, seed=0)
    return model


ours = practice.train(adapted(4), rows, 15)
with replaced(LoRALinear, "forward", my_forward):
    yours = practice.train(adapted(4), rows, 15)
show("training", plots.expected, yours.losses, ours.losses, "step", "loss", ("library", "yours"))

# %% [markdown]
# ## An experiment: how many weights must move?
#
# The model can reverse letters; now it learns to copy them. Prediction: a rank of 8 comes near
# the full model. All of them forget how to reverse, since nothing reminds them. But with adapters
# the old model is still there: switch them off.

# %%
new, old, sizes = {}, {}, {}
for name, rank in (("rank 1", 1), ("rank 8", 8), ("all weights", None)):
    model = copy.deepcopy(base) if rank is None else adapted(rank)
    trained = practice.train(model, rows, 120, optimizer=Muon(rate=1e-2)).model
    sizes[name] = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    new[name] = dialogues.accuracy(trained, Copy(), 60)
    old[name] = dialogues.accuracy(trained, reverse, 60)
    print(f"{name:<12} {sizes[name]:>7,} trained; copies {new[name]:.2f}, reverses {old[name]:.2f}")
    if rank == 8:
        with disabled(trained):
            print(f"  switched off, it reverses {dialogues.accuracy(trained, reverse, 60):.2f}")
        text = torch.tensor([rows.examples[0][0]])
        with torch.no_grad():
            before = trained(text)
            merge(trained)
            print(f"  merged, logits differ by {(trained(text) - before).abs().max():.1e}")
show("ranks", plots.columns, new, "what is trained", "share of exact answers when copying")
show("forgotten", plots.columns, old, "what is trained", "share of exact answers when reversing")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The rate.** Adapters need a rate about ten times that of full fine-tuning (Culm's recipes
#   have both).
# - **Alpha without a plan.** Twice the rank is usual. With `rslora` the scale is alpha divided by
#   the root of the rank, so that high ranks keep learning.
# - **New special tokens.** The embedding is frozen: its new rows stay random. `train_also` trains
#   them.
# - **Merging into quantised weights.** QLoRA's base is in 4 bits. Merge into the dequantised
#   weights, then quantise again, and evaluate *that* model.
# - **Only attention is adapted.** The paper did so; adapters on all layers are better at the same
#   number of trained weights (arXiv 2305.14314).
# - **A curriculum that never ends.** The last steps must see all examples as they come in use.
