"""One dial, `model: {depth: 12}`: the depth sets the other settings of a run.

    layers               depth
    width                64 * depth (as nanochat)
    heads                of 128 where the depth is even and at least 8, else of 64; with QK-norm
    vocabulary           1024 * depth, at most 32,768
    rates, initial       CompleteP (arXiv 2505.01618) from a base of width 256 and depth 4: one
    weights              rate for every depth
    tokens               20 for each parameter (arXiv 2203.15556), of which there are about
                         12 * depth * width^2 in the blocks and vocabulary * width in the head
    tokens of a step     262,144 * sqrt(tokens / 2e9), as a power of two: what is used well grows
                         about as the root of the tokens (arXiv 2410.21676); the factor is ours.
                         Short runs have smaller ones, so that they take 200 steps
    batch_size           tokens of a step / context
    micro_batch_size     as many sequences as have 16,384 tokens
    steps                tokens / tokens of a step

Settings that are given as well are kept, and the rest follows from them. The parameter count above
ignores other parts, such as experts: give `train.steps` with those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from culm.compose import Composed, leaves, merge
from culm.config import SettingError

BASE_WIDTH, BASE_DEPTH, BASE_HEAD = 256, 4, 64
INITIAL, RATE = 0.125, 0.004  # for the base; the best rate of seven (docs/log.md)
TOKENS_PER_PARAMETER = 20
LEAST_STEPS = 200
AT_ONCE = 16_384  # tokens of a micro-batch
CONTEXT = 512


def apply_depth(composed: Composed) -> Composed:
    """A run with its depth replaced by what follows from it; without one as it is.

    Raises:
        SettingError: the depth is no number of layers, or these are given too.
    """
    model = composed.values.get("model")
    if not isinstance(model, Mapping) or "depth" not in model:
        return composed
    depth = model["depth"]
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 128:
        raise SettingError(f"model.depth: expected a number of layers from 1 to 128: {depth!r}")
    if "layers" in model:
        raise SettingError(
            "model.depth: the layers are given too; take the dial alone, as in "
            f"model={{depth: {depth}}}"
        )
    given = {**composed.values, "model": {k: v for k, v in model.items() if k != "depth"}}
    derived = {"model": _model(depth, given["model"])}
    whole = merge(derived, given)
    derived["train"] = _train(whole["model"], whole.get("train"))
    values, known = merge(derived, given), dict(composed.origins)
    known.pop("model.depth", None)
    origins = dict.fromkeys(leaves(derived), f"model.depth={depth}") | known
    return Composed(values, {leaf: origins[leaf] for leaf in leaves(values) if leaf in origins})


def _model(depth: int, given: Mapping[str, Any]) -> dict[str, Any]:
    width = _number(given, "width", 64 * depth)
    head = 128 if depth >= 8 and width % 128 == 0 else 64
    base = {"base_width": BASE_WIDTH, "base_depth": BASE_DEPTH, "base_head_dim": BASE_HEAD}
    heads = {"heads": max(1, width // head), "head_dim": head, "qk_norm": "head"}
    return {
        "vocabulary": min(32_768, 1024 * depth),
        "width": width,
        "layers": depth,
        "context": CONTEXT,
        "attention": {"kind": "gqa", **heads},
        "tied": False,
        "init": {"kind": "zero", "std": INITIAL},
        "scaling": {"kind": "completep", **base},
    }


def _train(model: Mapping[str, Any], given: Any) -> dict[str, Any]:
    given = given if isinstance(given, Mapping) else {}
    width, layers = _number(model, "width", 64), _number(model, "layers", 1)
    parameters = 12 * layers * width**2 + _number(model, "vocabulary", 1) * width
    tokens = TOKENS_PER_PARAMETER * parameters
    context = _number(given, "context", _number(model, "context", CONTEXT))
    rows = _number(given, "batch_size", batch_size_for(tokens, context))
    return {
        "batch_size": rows,
        "micro_batch_size": min(rows, max(1, AT_ONCE // context)),
        "steps": max(1, round(tokens / (rows * context))),
        "optimizer": {"kind": "adamw", "rate": RATE},
    }


def batch_size_for(tokens: float, context: int) -> int:
    """Rows of a step, by the rule above, for a run that reads this many tokens."""
    a_step = min(262_144 * math.sqrt(tokens / 2e9), tokens / LEAST_STEPS)
    return max(1, 2 ** round(math.log2(a_step)) // context)


def _number(values: Mapping[str, Any], name: str, default: int) -> int:
    """A number that was given; if it is not a number, parsing the settings will say so."""
    value = values.get(name, default)
    return value if isinstance(value, int) and value > 0 else default
