"""Exercises of lesson 5: mixtures of experts, and hybrids of attention and states."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.attention.deltanet import delta_rule
from culm.model.context import LayerContext
from culm.model.mlp import balance
from culm.model.mlp.moe import MixtureOfExperts, MoE, Router
from culm.objective.experts import move_bias
from culm.plan.model import idle_parameters

Routed = tuple[Tensor, Tensor]


def _router(logits: Tensor, config: MoE) -> Router:
    """A router that gives its input as logits."""
    router = Router(config, logits.shape[1])
    router.weight.data = torch.eye(logits.shape[1])
    return router


def _context(tokens: int) -> LayerContext:
    return LayerContext(torch.arange(tokens)[None])


def route(logits: Tensor, k: int) -> Routed:
    router = _router(logits, MoE(experts=logits.shape[1], top_k=k, hidden=1))
    weights, chosen, _ = router(logits, _context(len(logits)))
    return weights.detach(), chosen


def route_answer(logits: Tensor, k: int) -> Routed:
    shares, chosen = logits.softmax(-1).topk(k)
    return shares / shares.sum(-1, keepdim=True), chosen


def _route_unnormalised(logits: Tensor, k: int) -> Routed:
    shares, chosen = logits.softmax(-1).topk(k)
    return shares, chosen


def _route_evenly(logits: Tensor, k: int) -> Routed:
    weights, chosen = route_answer(logits, k)
    return torch.full_like(weights, 1 / k), chosen


def mixture(x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int) -> Tensor:
    config = MoE(experts=len(router), top_k=k, hidden=gate.shape[1])
    layer = MixtureOfExperts(config, x.shape[1])
    layer.router.weight.data = router
    experts = layer.experts
    experts.gate.weight.data, experts.up.weight.data, experts.down.weight.data = gate, up, down
    return layer(x[None], _context(len(x)))[0].detach()


def mixture_answer(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    weights, chosen = route_answer(x @ router.T, k)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
            inner = F.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
            out[token] += weight * (down[expert] @ inner)
    return out


def _mixture_of_all(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    return mixture_answer(x, router, gate, up, down, len(router))


def _mixture_unweighted(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    _, chosen = route_answer(x @ router.T, k)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for expert in chosen[token].tolist():
            inner = F.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
            out[token] += down[expert] @ inner
    return out


def sizes(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    layer = MixtureOfExperts(MoE(experts=experts, top_k=k, hidden=hidden), width)
    every = sum(parameter.numel() for parameter in layer.parameters())
    return every, every - idle_parameters(layer)


def sizes_answer(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    expert, router = 3 * width * hidden, experts * width
    return experts * expert + router, k * expert + router


def _sizes_without_router(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    return experts * 3 * width * hidden, k * 3 * width * hidden


def load(chosen: Tensor, experts: int) -> Tensor:
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return counts / counts.float().mean()


def load_answer(chosen: Tensor, experts: int) -> Tensor:
    counts = torch.zeros(experts)
    for expert in chosen.flatten().tolist():
        counts[expert] += 1
    return counts / counts.mean()


def balance_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    shares = logits.softmax(-1)
    assigned = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
    return balance.switch_loss(shares, assigned) / len(logits)


def balance_loss_answer(logits: Tensor, chosen: Tensor) -> Tensor:
    experts = logits.shape[1]
    fractions = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (fractions * logits.softmax(-1).mean(0)).sum()


def _balance_unscaled(logits: Tensor, chosen: Tensor) -> Tensor:
    return balance_loss_answer(logits, chosen) / logits.shape[1]


def _balance_of_counts(logits: Tensor, chosen: Tensor) -> Tensor:
    fractions = torch.bincount(chosen.flatten(), minlength=logits.shape[1]) / chosen.numel()
    return logits.shape[1] * fractions.square().sum()


def z_loss(logits: Tensor) -> Tensor:
    return balance.z_loss(logits, None) / len(logits)


def z_loss_answer(logits: Tensor) -> Tensor:
    return logits.exp().sum(-1).log().square().mean()


def moved_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    config = MoE(experts=len(bias), hidden=1, selection_bias=True, bias_rate=rate)
    router = Router(config, 1)
    router.selection = bias.clone()
    move_bias(router, counts)
    return router.selection


def moved_bias_answer(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    signs = (counts.mean() - counts).sign()
    return bias + rate * (signs - signs.mean())


def _bias_wrong_way(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    return moved_bias_answer(bias, -counts, rate)


def _bias_by_amount(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    return bias + rate * (counts.mean() - counts)


def fits(chosen: Tensor, experts: int, factor: float) -> Tensor:
    logits = torch.zeros(len(chosen), experts).scatter(1, chosen, 9.0 + 0.1 * -_places(chosen))
    config = MoE(experts=experts, top_k=chosen.shape[1], hidden=1, capacity=factor)
    router = _router(logits, config).train()
    weights, found, _ = router(logits, _context(len(chosen)))
    assert torch.equal(found, chosen)
    return weights > 0


def _places(chosen: Tensor) -> Tensor:
    """Smaller scores for later choices, so that their order stays."""
    return torch.arange(chosen.shape[1]).expand(chosen.shape).float()


def fits_answer(chosen: Tensor, experts: int, factor: float) -> Tensor:
    room = [math.ceil(factor * chosen.numel() / experts)] * experts
    kept = torch.zeros(chosen.shape, dtype=torch.bool)
    for token, places in enumerate(chosen.tolist()):
        for place, expert in enumerate(places):
            kept[token, place] = room[expert] > 0
            room[expert] -= 1
    return kept


def _fits_rounded_down(chosen: Tensor, experts: int, factor: float) -> Tensor:
    return fits_answer(
        chosen, experts, int(factor * chosen.numel() / experts) * experts / chosen.numel()
    )


def _fits_all(chosen: Tensor, experts: int, factor: float) -> Tensor:
    return torch.ones(chosen.shape, dtype=torch.bool)


def grouped(chosen: Tensor, experts: int) -> Routed:
    sorted_, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(sorted_, torch.arange(experts), right=True)
    return order // chosen.shape[1], ends


def grouped_answer(chosen: Tensor, experts: int) -> Routed:
    tokens, ends = list[int](), list[int]()
    for expert in range(experts):
        tokens += [token for token, row in enumerate(chosen.tolist()) for e in row if e == expert]
        ends.append(len(tokens))
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(ends)


def _grouped_starts(chosen: Tensor, experts: int) -> Routed:
    tokens, ends = grouped_answer(chosen, experts)
    return tokens, torch.cat((ends.new_zeros(1), ends[:-1]))


def state_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Routed:
    q, k, v = (x[None, None, None] for x in (q, k, v))
    decays, strengths = torch.full((1, 1, 1), decay), torch.full((1, 1, 1), strength)
    out, after = delta_rule(q, k, v, decays, strengths, state[None, None])
    return out[0, 0, 0], after[0, 0]


def state_step_answer(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Routed:
    state = state * math.exp(-decay)
    state = state + strength * torch.outer(k, v - k @ state)
    return q @ state / len(q) ** 0.5, state


def _state_only_adds(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Routed:
    state = state * math.exp(-decay) + strength * torch.outer(k, v)
    return q @ state / len(q) ** 0.5, state


def _state_reads_before(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Routed:
    _, after = state_step_answer(state, q, k, v, decay, strength)
    return q @ (state * math.exp(-decay)) / len(q) ** 0.5, after


def hybrid_bytes(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    """Of a cache in fp32: `state` numbers in a layer, keys and values of `kv` in every n-th."""
    return sum(
        4 * (2 * kv * tokens if layer % every == every - 1 else state) for layer in range(layers)
    )


def _hybrid_all_attend(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    return 4 * layers * 2 * kv * tokens


def _hybrid_grows(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    return sum(
        4 * tokens * (2 * kv if layer % every == every - 1 else state) for layer in range(layers)
    )


def _choices(g: torch.Generator, tokens: int, experts: int, k: int) -> Tensor:
    return torch.rand(tokens, experts, generator=g).topk(k).indices


def _mixture_case(g: torch.Generator, k: int) -> tuple:
    shapes = ((5, 4), (3, 4), (3, 6, 4), (3, 6, 4), (3, 4, 6))
    return (*(normal(g, *shape) for shape in shapes), k)


def _state_case(g: torch.Generator, decay: float, strength: float) -> tuple:
    key = F.normalize(normal(g, 4), dim=0)
    return normal(g, 4, 3), normal(g, 4), key, normal(g, 3), decay, strength


EXERCISES = (
    Exercise(
        "experts.route",
        "Choose the k experts with the highest softmax score; divide their scores by their sum.",
        route,
        lambda g: [(normal(g, 6, 4), 2), (normal(g, 3, 8), 1), (normal(g, 2, 3), 3)],
        route_answer,
        (
            Mistake("the weights of a token must sum to 1.", _route_unnormalised),
            Mistake("an expert with a higher score has a higher weight.", _route_evenly),
        ),
    ),
    Exercise(
        "experts.mixture",
        "Give each token the sum of its k experts (SwiGLU each), each times its weight.",
        mixture,
        lambda g: [_mixture_case(g, 2), _mixture_case(g, 1)],
        mixture_answer,
        (
            Mistake("only k experts compute: that is the point.", _mixture_of_all),
            Mistake("multiply each expert by its weight.", _mixture_unweighted),
        ),
    ),
    Exercise(
        "experts.sizes",
        "Count the parameters of a layer of experts, and those that one token uses.",
        sizes,
        lambda g: [(32, 64, 8, 2), (16, 8, 4, 4)],
        sizes_answer,
        (
            Mistake("the router has a row for each expert.", _sizes_without_router),
            Mistake(
                "a token uses k experts.", lambda w, h, n, k: (sizes_answer(w, h, n, k)[0],) * 2
            ),
        ),
    ),
    Exercise(
        "experts.grouped",
        "List the tokens of expert 0, then those of expert 1, and so on, and where each ends.",
        grouped,
        lambda g: [(_choices(g, 5, 4, 2), 4), (torch.tensor([[2], [2], [0]]), 4)],
        grouped_answer,
        (Mistake("give where the rows of each expert end.", _grouped_starts),),
    ),
    Exercise(
        "experts.load",
        "Give the load of each expert as a multiple of the mean load.",
        load,
        lambda g: [(_choices(g, 20, 5, 2), 5), (torch.tensor([[0], [0]]), 3)],
        load_answer,
        (
            Mistake(
                "as a multiple of the mean: 1 is even.",
                lambda chosen, n: load_answer(chosen, n) / n,
            ),
        ),
    ),
    Exercise(
        "experts.balance_loss",
        "Multiply for each expert its fraction of the assignments and its mean score, add up, and "
        "multiply by the number of experts.",
        balance_loss,
        lambda g: [
            (normal(g, 20, 4), _choices(g, 20, 4, 2)),
            (normal(g, 3, 2), _choices(g, 3, 2, 1)),
        ],
        balance_loss_answer,
        (
            Mistake("times the number of experts, so that even is 1.", _balance_unscaled),
            Mistake("counts have no gradient: the mean scores must be in it.", _balance_of_counts),
        ),
    ),
    Exercise(
        "experts.z_loss",
        "Give the mean of the squared log of the sum of e to the power of the logits.",
        z_loss,
        lambda g: [(normal(g, 6, 4),), (torch.zeros(2, 3),)],
        z_loss_answer,
        (
            Mistake("square it.", lambda logits: logits.logsumexp(-1).mean()),
            Mistake(
                "the sum is over the experts of a token.",
                lambda logits: logits.exp().sum(0).log().square().mean(),
            ),
        ),
    ),
    Exercise(
        "experts.moved_bias",
        "Raise the bias of experts below the mean load by the rate, lower the others, and keep the "
        "sum of all biases.",
        moved_bias,
        lambda g: [
            (torch.zeros(4), torch.tensor([8.0, 2.0, 3.0, 7.0]), 0.1),
            (normal(g, 3), torch.tensor([9.0, 0.0, 0.0]), 0.01),
        ],
        moved_bias_answer,
        (
            Mistake("an expert with little load must become more likely.", _bias_wrong_way),
            Mistake("all move by the same step: only the sign counts.", _bias_by_amount),
        ),
    ),
    Exercise(
        "experts.fits",
        "Say which assignments fit, in the order of tokens: an expert takes at most `factor` times "
        "its even share, rounded up.",
        fits,
        lambda g: [
            (torch.tensor([[0], [0], [1], [0], [0]]), 2, 1.0),
            (_choices(g, 8, 4, 2), 4, 0.6),
            (_choices(g, 6, 3, 1), 3, 9.0),
        ],
        fits_answer,
        (
            Mistake("round up.", _fits_rounded_down),
            Mistake("later tokens find their expert full.", _fits_all),
        ),
    ),
    Exercise(
        "experts.state_step",
        "Let the state decay, replace the value of the key by the new one, and read the query.",
        state_step,
        lambda g: [_state_case(g, 0.1, 0.7), _state_case(g, 0.0, 1.0)],
        state_step_answer,
        (
            Mistake("the old value of the key is removed first: v - k S.", _state_only_adds),
            Mistake("a token reads after it has written.", _state_reads_before),
        ),
    ),
    Exercise(
        "experts.hybrid_bytes",
        "Count the bytes of a cache in fp32 where every n-th layer stores all tokens, the others a "
        "state.",
        hybrid_bytes,
        lambda g: [(100, 8, 4, 32, 500), (1, 3, 1, 4, 9), (10, 5, 4, 8, 100)],
        None,
        (
            Mistake("only every n-th layer stores the tokens.", _hybrid_all_attend),
            Mistake("a state does not grow with the text.", _hybrid_grows),
        ),
    ),
)
