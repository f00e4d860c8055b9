"""`culm plan --budget`: what to train in a given time, from micro-runs on the run's own text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from shlex import quote
from typing import Any

import yaml
from rich.console import Console

from culm.atomic import atomic
from culm.config import Config, SettingError
from culm.plan.target import target_of
from culm.run.budget.micro_runs import MicroRuns
from culm.run.budget.propose import Budgeted, propose
from culm.run.settings import RunConfig
from culm.verbs.format import count, duration, flops
from culm.verbs.plan_needs import section

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FAR = 100.0  # times N D of the largest micro-run, from which a prediction rests on the priors
EPOCHS = 4.0  # from which repeated text is worth clearly less (arXiv 2305.16264)
PASTED = (
    "model.width", "model.layers", "model.attention", "model.mlp", "train.optimizer.rate",
    "train.steps", "train.batch_size", "train.micro_batch_size", "train.activation_checkpointing",
)  # fmt: skip


def seconds_of(budget: str) -> float:
    """`90s`, `30m`, `2h`, `1.5d` in seconds.

    Raises:
        SettingError: it is not of this form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", budget.strip())
    if found is None or not float(found[1]):
        raise SettingError(f"--budget: expected a time such as 30m, 2h or 1d: {budget!r}")
    return float(found[1]) * UNITS[found[2]]


def show_budget(
    run: str, config: RunConfig, budget: str, ranks: int = 1, target: str | None = None
) -> Budgeted:
    """Make the micro-runs, print their law and what it proposes, and write that as a run file.

    run: its name, for a command to paste.

    Raises:
        SettingError: see `propose`.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = propose(config, seconds_of(budget), target_of(target) if target else None, ranks)
    section(console, "Micro-runs", list(_micro_runs(found)))
    section(console, "Scaling law", list(_law(found)))
    section(console, "Proposal", list(_proposal(found)))
    for remark in _remarks(found):
        console.print(f"\n{remark}")
    path = MicroRuns(config).folder / "proposal.yaml"
    values = found.proposal.config.model_dump(mode="json")
    with atomic(path) as fresh:
        fresh.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    console.print(f"\nculm train {quote(str(path))}\n", markup=False)
    settings = " ".join(quote(one) for one in pasted(found.proposal.config))
    console.print(f"The same by settings:\n\nculm train {run} ... {settings}", markup=False)
    return found


def _micro_runs(found: Budgeted) -> Iterator[tuple[str, ...]]:
    yield "parameters", "tokens", "rate", "bits per byte", "of the law"
    for one in found.done:
        parameters = found.family.parameters(one.run.model)
        fitted = found.law.loss(parameters, one.tokens)
        yield (
            count(parameters), count(one.tokens), f"{one.run.rate:g}", f"{one.loss:.3f}",
            f"{fitted:.3f}",
        )  # fmt: skip


def _law(found: Budgeted) -> Iterator[tuple[str, ...]]:
    low, high = (
        found.law.replicates[:, 3:].quantile(0.05, 0),
        found.law.replicates[:, 3:].quantile(0.95, 0),
    )
    names = {"alpha": "of parameters", "beta": "of tokens"}
    for n, (name, what) in enumerate(names.items()):
        value = float(found.law.theta[3 + n])
        yield (
            name,
            f"{value:.2f}, exponent {what}; 90 % of replicates in {low[n]:.2f} to {high[n]:.2f}",
        )
    yield "E", f"{float(found.law.theta[0].exp()):.2f} bits per byte that no size would learn"
    yield (
        "speed",
        f"{flops(found.clock.rate)}/s and {1e6 * found.clock.fixed:.2f} µs for each token",
    )


def _proposal(found: Budgeted) -> Iterator[tuple[str, ...]]:
    one = found.proposal
    model, train = one.config.model, one.config.train
    assert model is not None
    yield (
        "model",
        f"{count(one.parameters)} parameters: {model.layers} layers of width {model.width}",
    )
    yield "tokens", f"{count(one.tokens)} in {train.steps:,} steps, {one.epochs:.1f} epochs"
    yield "batch", f"{train.batch_size} sequences a step, {train.at_once} at once"
    yield "rate", f"{train.optimizer.rate:g} of {train.optimizer.kind}"
    yield "time", f"{duration(one.seconds)} of training"
    yield (
        "expected",
        f"{one.loss:.3f} bits per byte, with 90 % between {one.low:.3f} and {one.high:.3f}",
    )


def _remarks(found: Budgeted) -> Iterator[str]:
    one = found.proposal
    if one.beyond > FAR:
        yield (
            f"Extrapolated far: parameters times tokens are {one.beyond:,.0f} times those of the "
            "largest micro-run. So the interval rests more on what other models did than on these "
            "runs, and the best size may be another one."
        )
    else:
        yield (
            f"Parameters times tokens are {one.beyond:,.0f} times those of the largest micro-run."
        )
    if one.epochs > EPOCHS:
        yield (
            f"The text is read {one.epochs:.0f} times. Beyond {EPOCHS:.0f} times it teaches "
            "clearly less: more text would help more than more time."
        )
    if not found.inside:
        yield (
            f"The best rate of the smallest model was the last one that was tried, {found.rate:g}: "
            "give another train.optimizer.rate to look elsewhere."
        )


def pasted(config: RunConfig) -> list[str]:
    """The settings of a proposal that differ from those of other sizes, as arguments."""
    return [f"{name}={_written(_value(config, name))}" for name in PASTED]


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = dict(config)[part]
    return config


def _written(value: Any) -> str:
    """A setting as YAML in one line, without what is so by default."""
    if isinstance(value, tuple):
        parts = [_plain(part) for part in value]
        value = parts[0] if len(parts) == 1 else parts
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...")
    )


def _plain(part: Config) -> dict[str, Any]:
    values = part.model_dump(mode="json", exclude_defaults=True)
    return {"kind": dict(part)["kind"], **values}
