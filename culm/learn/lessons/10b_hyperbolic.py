# %% [markdown]
# # Lesson 10b: Hyperbolic space
#
# **The question.** Meanings form trees: a poodle is a dog is an animal. A tree with two branches
# each has 2, 4, 8, 16 ... nodes: the number grows exponentially with the depth. The space on a
# sheet of paper grows with the square only. So leaves must crowd. Is there a space in which a tree
# has room?

# %%
import math

import torch

from culm.eval import plots
from culm.hyperbolic.poincare import Poincare
from culm.learn.lesson import exercise, replaced, show

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## The ball
#
# In the *Poincaré ball* (arXiv 1705.08039) all points have a length below 1, and the edge is
# infinitely far away. Steps of the same distance look shorter and shorter towards the edge.


# %%
@exercise("hyperbolic.distance")
def distance(x, y):
    """(..., D), (..., D) -> (...)."""
    raise NotImplementedError


radii = torch.linspace(0, 0.995, 60).double()
away = distance(torch.stack((radii, torch.zeros(60).double()), 1), torch.zeros(2).double())
show(
    "edge",
    plots.lines,
    {
        "hyperbolic": list(zip(radii.tolist(), away.tolist(), strict=True)),
        "Euclidean": list(zip(radii.tolist(), radii.tolist(), strict=True)),
    },
    "length of a point",
    "distance from the origin",
)

# %% [markdown]
# How much room is there? Walk around a circle of radius r in small steps. On paper that is 2 pi r;
# here 2 pi sinh(r), which grows as e^r: as fast as a tree.

# %%
circles = []
angles = torch.linspace(0, 2 * math.pi, 2001).double()
for r in torch.linspace(0.2, 4, 12).tolist():
    points = math.tanh(r / 2) * torch.stack((angles.cos(), angles.sin()), 1)
    circles.append((r, distance(points[1:], points[:-1]).sum().item()))
line = [(r, 2 * math.pi * math.sinh(r)) for r in torch.linspace(0.2, 4, 50).tolist()]
show(
    "room", plots.expected, circles, line, "radius", "length of the circle",
    ("2 pi sinh(r)", "2,000 steps"), "y",
)  # fmt: skip

# %% [markdown]
# ## Moving in it
#
# x + y may leave the ball. *Moebius addition* does not. A vector at the origin becomes a point by
# the *exponential map*: walk in its direction, as far as it is long. And a gradient step must be
# scaled: near the edge a tiny step of numbers is a long way.


# %%
@exercise("hyperbolic.add")
def add(x, y):
    """(D,), (D,) -> (D,): y, moved along the geodesic from the origin to x."""
    raise NotImplementedError


@exercise("hyperbolic.from_origin")
def from_origin(v):
    """(..., D) -> (..., D), points of the ball."""
    raise NotImplementedError


@exercise("hyperbolic.gradient")
def gradient(x, euclidean):
    """Points and partial derivatives (..., D) -> the Riemannian gradient (..., D)."""
    raise NotImplementedError


x, y = torch.tensor([0.6, 0.0]).double(), torch.tensor([0.0, 0.6]).double()
print("x + y:", add(x, y).tolist(), " y + x:", add(y, x).tolist())

# %% [markdown]
# ## The hyperboloid
#
# Near the edge of the ball all numbers begin with 0.9999, and 32 bits run out. The same space has
# another form, one sheet of a hyperboloid: a space part, and a *time* that follows from it. It is
# stable far away, and a mean has a formula there.


# %%
@exercise("hyperbolic.lift")
def lift(space):
    """(..., D) -> (..., D + 1), the time first."""
    raise NotImplementedError


@exercise("hyperbolic.inner")
def inner(x, y):
    """(..., D + 1), (..., D + 1) -> (...); of a point with itself it is -1."""
    raise NotImplementedError


@exercise("hyperbolic.to_ball")
def to_ball(x):
    """(..., D + 1) -> (..., D): the same point in the ball."""
    raise NotImplementedError


@exercise("hyperbolic.centroid")
def centroid(x, weights):
    """x: (N, D + 1), weights: (N,) -> (D + 1,)."""
    raise NotImplementedError


points = lift(torch.randn(5, 2).double())
print("inner, of each with itself:", inner(points, points).tolist())
print("centroid in the ball:", to_ball(centroid(points, torch.ones(5).double())).tolist())

# %% [markdown]
# ## The library's version
#
# `culm/hyperbolic/poincare.py` and `culm/hyperbolic/lorentz.py` are two manifolds with the same
# methods, for any curvature and with Euclidean space as the limit; `culm/hyperbolic/means.py` has
# the means. `culm/adapt/hyplora.py` is LoRA through this space. The tree of this experiment: 31
# nodes, each with two children, and the distance of two nodes is the number of edges between them.


# %%
def depth(node):
    return (node + 1).bit_length() - 1


def edges(a, b):
    steps = 0
    while a != b:
        a, b = (a, (b - 1) // 2) if depth(b) >= depth(a) else ((a - 1) // 2, b)
        steps += 1
    return steps


NODES = 31
first, second = torch.triu_indices(NODES, NODES, 1)
wanted = torch.tensor(
    [edges(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
).double()
ball = Poincare(1.0)


def stress(found):
    """Mean squared relative error of all distances."""
    return ((found - wanted) / wanted).square().mean()


def embedded(hyperbolic, steps=1000):
    """The distances after gradient descent on the stress, and its value at each step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NODES, 2, generator=generator).double() * 0.1
    history = []
    for step in range(steps):
        x.requires_grad_()
        apart = (x[first] - x[second]).square().sum(-1).clamp_min(1e-12).sqrt()
        found = ball.distance(x[first], x[second]) if hyperbolic else apart
        loss = stress(found)
        (slope,) = torch.autograd.grad(loss, x)
        history.append((step, loss.item()))
        with torch.no_grad():
            if hyperbolic:
                slope = ball.gradient(x, slope)
            x = ball.exp(x, -60.0 * slope) if hyperbolic else x - 10.0 * slope
    return found.detach(), history


library, ours = embedded(True, 30)
with replaced(Poincare, "gradient", lambda ball, x, euclidean: gradient(x, euclidean)):
    _, yours = embedded(True, 30)
show("training", plots.expected, yours, ours, "step", "stress", ("library", "yours"))

# %% [markdown]
# ## An experiment: a tree in two dimensions
#
# Prediction: in the ball the distances of the tree fit much better than on paper, since there is
# room for all leaves. Each space has a rate that suits it; on paper the stress has come to its end
# after a tenth of the steps.

# %%
curves, errors = {}, {}
for name, hyperbolic in (("Euclidean", False), ("hyperbolic", True)):
    found, curves[name] = embedded(hyperbolic)
    errors[name] = ((found - wanted).abs() / wanted).mean().item()
    print(f"{name:<11} mean relative error of the distances {errors[name]:.3f}")
show("stress", plots.lines, curves, "step", "stress")
show("errors", plots.columns, errors, "space of two dimensions", "mean relative error")

# %% [markdown]
# ## What goes wrong in practice
#
# - **The edge.** In fp32 a point cannot come nearer to it than about 1e-7: distances end at 17. The
#   library keeps points away from it, and refuses bf16.
# - **Nothing is a tree.** On data without a hierarchy the curvature is only in the way. Learn it,
#   and compare with the Euclidean twin, which is one setting away.
# - **A rate for flat space.** Steps without the scale of the gradient jump over the edge.
# - **Many dimensions.** In hundreds of dimensions flat space has room too; the gain is largest in
#   few.
# - **Merging.** A hyperbolic adapter is not linear, so it cannot be merged into the weights.
