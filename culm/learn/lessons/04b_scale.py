# %% [markdown]
# # Lesson 4b: Many steps, many machines
#
# **The question.** You have an idea, a budget, and machines that fail. How large a model can you
# train, for how long, and how good will it be? How do several processes share one step? And what
# is left when the power fails in the third week?

# %%
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from culm.eval import plots
from culm.learn import practice
from culm.learn.lesson import exercise, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Memory and time, on the back of an envelope
#
# Training in fp32 with AdamW stores for each parameter: the weight, its gradient, and two
# averages. Activations come on top, and can be traded for time. The time follows from the number
# of multiplications: a forward takes 2 FLOPs per parameter and token (one multiplication, one
# addition), the backward twice as much.


# %%
@exercise("scale.training_bytes")
def training_bytes(parameters):
    """Bytes of weights, gradients and AdamW's averages in fp32."""
    raise NotImplementedError


@exercise("scale.flops")
def flops(parameters, tokens):
    """FLOPs of training, forward and backward."""
    raise NotImplementedError


@exercise("scale.utilisation")
def utilisation(parameters, tokens_per_second, peak):
    """peak: FLOP/s that the machine can do at most -> the share that the run uses."""
    raise NotImplementedError


for name, size in (("125M", 125e6), ("1B", 1e9), ("7B", 7e9)):
    days = flops(size, 20 * size) / (0.4 * 989e12) / 86400
    memory = training_bytes(int(size / 1e6)) / 1e3
    print(f"{name:>5}: {memory:6.1f} GB, {days:8.2f} days on one H200 at 40 %")

# %% [markdown]
# `culm plan RUN` computes this exactly, from the real modules, before a run starts. How good is
# the rule of 6? Expected and seen: FLOPs that the library counts, over models of growing width.

# %%
from culm.plan.model import cost_of

counted, ruled = [], []
for width in (32, 64, 128, 256, 512):
    cost = cost_of(practice.small(width=width, layers=4), 64)
    counted.append((cost.parameters, cost.training_flops))
    ruled.append((cost.parameters, flops(cost.parameters, 1)))
show(
    "flops",
    plots.expected,
    counted,
    ruled,
    "parameters",
    "training FLOPs per token",
    ("6 per parameter", "counted"),
    "xy",
)

# %% [markdown]
# ## Checkpoints
#
# A checkpoint holds everything that the next step depends on: weights, both averages of the
# optimizer, the number of the step, and where in the data we are. It is written under another
# name and renamed when it is complete, so that a crash in the middle of writing leaves the older
# one.
#
# The data need one number only, if the order of rows is a *function* of seed and step. Then
# nothing has to be skipped after a restart, and the order does not depend on the number of
# machines.


# %%
@exercise("scale.resume_step")
def resume_step(checkpoints):
    """A list of (step, whether it is complete) -> the step to resume from; 0: from the start."""
    raise NotImplementedError


@exercise("scale.rows_of_step")
def rows_of_step(step, size, order):
    """order(epoch): the rows in the order of that epoch, a list -> the `size` rows of a step."""
    raise NotImplementedError


# %% [markdown]
# A test of a checkpoint: train 12 steps at once; train 6, stop, resume for 6 more. All losses
# must be the *same*, bit for bit. A run folder of Culm resumes by the same command. (Many
# training programs fail this test: they forget the position in the data, or store weights in 16
# bits.)

# %%
from culm.config import parse
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train

place = Path(tempfile.mkdtemp())
(place / "corpus.txt").write_text(practice.text()[:60_000], encoding="utf-8")
MODEL = {
    "vocabulary": 256, "width": 32, "layers": 2, "context": 48,
    "attention": {"kind": "gqa", "heads": 2},
}  # fmt: skip


def settings(folder, steps):
    return {
        "folder": str(place / folder), "device": "cpu", "model": MODEL, "tokenizer": "bytes",
        "data": {"path": str(place / "corpus.txt")}, "eval": {"measures": {}},
        "train": {
            "steps": steps, "batch_size": 8, "precision": "fp32", "schedule": "constant",
            "optimizer": {"kind": "muon", "rate": 0.01}, "checkpoint": {"every_steps": 3},
        },
    }  # fmt: skip


def run(folder, steps):
    train(parse(RunConfig, settings(folder, steps)))
    return [(line["step"], line["loss"]) for line in read_lines(place / folder / "metrics.jsonl")]


whole = run("whole", 12)
first = run("stopped", 6)
resumed = run("stopped", 12)
show(
    "resume",
    plots.expected,
    resumed,
    whole,
    "step",
    "loss, nats per byte",
    ("never stopped", "resumed at 6"),
)
print("largest difference:", max(abs(a[1] - b[1]) for a, b in zip(whole, resumed, strict=True)))

# %% [markdown]
# ## Two processes
#
# *Data parallel*: each process (*rank*) has a copy of the model and reads other rows. Before the
# update, the gradients are added up over all ranks (*all-reduce*), so all copies stay the same.
# As with accumulation, ranks have different numbers of targets: add sums, and divide once.
#
# *Sharded* (FSDP, ZeRO): each rank keeps only a part of weights, gradients and averages, and the
# full weights of a layer are gathered just before they are used. 16 bytes per parameter become 16
# / ranks.


# %%
@exercise("scale.reduced")
def reduced(gradients, counts):
    """Each rank's summed gradient and its targets -> a list: the gradient on each rank."""
    raise NotImplementedError


@exercise("scale.shards")
def shards(weights, ranks):
    """weights: (N,) -> a list of equally long parts, the last filled up with 0."""
    raise NotImplementedError


# %% [markdown]
# The same run on two processes. `culm launch` starts them; on a cluster it writes the file for
# the scheduler. Prediction: the losses are those of one process, up to rounding. Speed is no
# point on a laptop.

# %%
values = settings("two", 12)
arguments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
done = subprocess.run(
    [sys.executable, "-m", "culm", "launch", "pretrain", *arguments, "--ranks", "2"],
    capture_output=True, text=True, cwd=place,
)  # fmt: skip
assert done.returncode == 0, done.stderr[-2000:]
two = [(line["step"], line["loss"]) for line in read_lines(place / "two" / "metrics.jsonl")]
show(
    "ranks",
    plots.expected,
    two,
    whole,
    "step",
    "loss, nats per byte",
    ("one process", "two processes"),
)
print("largest difference:", max(abs(a[1] - b[1]) for a, b in zip(whole, two, strict=True)))

# %% [markdown]
# ## Logging
#
# Each step writes one line to `metrics.jsonl`: loss, gradient norm, learning rate, tokens per
# second. A loss per step is noisy, so plots show a running mean on top of it. A mean that starts
# at 0 must be corrected for that, as the averages of AdamW.


# %%
@exercise("scale.smooth")
def smooth(values, share):
    """values: a list -> the running mean after each of them."""
    raise NotImplementedError


data = practice.Windows(practice.tokens(practice.text()), context=48, rows=4)
noisy = practice.train(practice.small(width=32), data, steps=50).losses
steps, losses = zip(*noisy, strict=True)
show(
    "smooth",
    plots.lines,
    {"each step": noisy, "running mean": list(zip(steps, smooth(list(losses), 0.9), strict=True))},
    "step",
    "loss, nats per byte",
)
print(sorted(read_lines(place / "whole" / "metrics.jsonl")[0]))

# %% [markdown]
# ## Scaling laws
#
# The loss of a language model follows a simple law of its parameters N and training tokens D
# (Hoffmann et al., 2022, arXiv 2203.15556, "Chinchilla"):
#
#     L(N, D) = E + A / N^alpha + B / D^beta
#
# E is what nobody can predict, the second term is what a larger model would gain, the third what
# more text would gain. With a budget of C = 6 N D FLOPs, there is a best N: a larger model would
# see too little text, a smaller one could not use it.


# %%
@exercise("scaling.power")
def power(xs, ys):
    """Two lists of positive numbers -> (c, p) of y = c x^p, fitted between the logarithms."""
    raise NotImplementedError


@exercise("scaling.law")
def law(theta, parameters, tokens):
    """theta: (E, A, alpha, B, beta) -> the loss."""
    raise NotImplementedError


@exercise("scaling.optimum")
def optimum(theta, budget):
    """Set the derivative of the law to 0 under 6 N D = budget -> (parameters, tokens)."""
    raise NotImplementedError


chinchilla = (1.69, 406.4, 0.34, 410.7, 0.28)
budgets = [10.0**n for n in range(18, 26)]
best = [optimum(chinchilla, budget) for budget in budgets]
curves = {}
for budget in budgets[::3]:
    sizes = [best[0][0] * 2.0**n for n in range(-3, 18)]
    curve = [(math.log10(n), law(chinchilla, n, budget / 6 / n)) for n in sizes]
    curves[f"{budget:.0e} FLOPs"] = [point for point in curve if point[1] < 4]
show("budgets", plots.lines, curves, "parameters, power of 10", "loss, nats per token")
factor, exponent = power(budgets, [parameters for parameters, _ in best])
print(f"the best model grows with the budget to the power of {exponent:.2f}")

# %% [markdown]
# ## An experiment: predict a run before it is made
#
# Train nine tiny models, fit the law, and predict the loss of a model that is larger and trained
# for longer than any of them. Prediction: the seen loss lies within the interval of the library's
# fit (`culm/plan/scaling.py`; `culm plan --budget 30m` does all this for your own text).

# %%
from culm.optim.muon import Muon
from culm.optim.schedule import Cosine
from culm.plan.scaling import Point, fit

data = practice.Windows(practice.tokens(practice.text()), context=48, rows=12)


def point(width, steps):
    config = practice.small(width=width)
    done = practice.train(config, data, steps=steps, optimizer=Muon(rate=2e-2), schedule=Cosine())
    loss = practice.held_out_loss(done.model, data) / math.log(2)
    return Point(cost_of(config, 48).parameters, steps * 12 * 48, loss)


points = [point(width, steps) for width in (16, 32, 48) for steps in (30, 60, 120)]
found = fit(points)
larger = point(64, 200)
low, high = found.interval(larger.parameters, larger.tokens)
wanted = found.loss(larger.parameters, larger.tokens)
print(f"predicted {wanted:.2f} bits per byte ({low:.2f} to {high:.2f}), seen {larger.loss:.2f}")
every = [*points, larger]
predicted = [(one.loss, found.loss(one.parameters, one.tokens)) for one in every]
line = [(loss, loss) for loss in (min(p.loss for p in every), max(p.loss for p in every))]
show(
    "law",
    plots.expected,
    predicted,
    line,
    "bits per byte that were seen",
    "bits per byte by the law",
    ("equal", "runs; the lowest one is the prediction"),
)

# %% [markdown]
# ## What goes wrong in practice
#
# - **Resume is not exact.** The most reported fault of training programs: data repeated or left
#   out, random numbers lost, the optimizer reset. In one report 40 % of a run was lost that way.
#   Test it before the long run, as above.
# - **A full disk.** Half a checkpoint under the final name. Write, flush, rename.
# - **One rank waits for ever.** Another one failed, or computes another shape. Culm watches all
#   ranks and names the one that is missing (`culm/parallel/watch.py`).
# - **MFU of 10 %.** Too small batches, slow data, no fused attention. `culm bench train` shows
#   where the time goes.
# - **A law far outside its points.** Ten times the largest run is reasonable, a thousand times is
#   a guess: the interval says so.
