"""Which micro-runs a budget pays for: rates of one size, then three sizes in three lengths.

The smallest size is 16 times smaller than the model that the budget is probably for, or as small as
it must be so that its shortest run has 10 tokens for each of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.files import read_json, write_json
from culm.model.transformer import TransformerConfig
from culm.plan.family import Family, resized
from culm.plan.scaling import comparable, lowest
from culm.plan.speed import Speed
from culm.run.budget.micro_runs import EVALUATED, MicroRun, transferred
from culm.run.dial import LEAST_STEPS, TOKENS_PER_PARAMETER, batch_size_for
from culm.run.settings import RunConfig

SHARE, LONGEST = 0.1, 300.0  # of the budget; seconds at most, unless the shortest runs take more
MOST = 1 / 3  # of the budget, from which it is refused
SIZES, LENGTHS = (1, 2, 4), (1, 2, 4)  # multiples of the smallest and the shortest
FACTOR = 3.0  # between two rates
RATES, MOST_RATES = 3, 6  # that are tried; more than three until one is better than both next to it
SMALLER, LEAST_RATIO = 16, 10
BESIDES = 1.0  # seconds of a micro-run in which it is assembled and saved, about
FIRST = 5  # sizes that are considered however large they are


@dataclass(frozen=True)
class Ladder:
    """models: smallest first. tokens: of the lengths. rate: of the smallest, as the run has it.
    seconds: that all take, about.
    """

    models: tuple[TransformerConfig, ...]
    tokens: tuple[int, ...]
    rate: float
    seconds: float

    def with_rate(self, rate: float) -> MicroRun:
        """The smallest model in the middle length."""
        return MicroRun(self.models[0], self.tokens[1], _rounded(rate))

    def grid(self, config: RunConfig, rate: float) -> list[MicroRun]:
        """Each size in each length. rate: of the smallest; others take that of their width."""
        narrow = self.models[0].width
        return [
            MicroRun(model, tokens, _rounded(transferred(rate, config, narrow, model.width)))
            for model in self.models
            for tokens in self.tokens
        ]


def ladder_of(
    config: RunConfig, family: Family, seconds: float, here: Speed, there: float, folder: Path
) -> Ladder:
    """The micro-runs, which `folder` remembers, so that the same command continues with them.

    seconds: of the budget. here: this machine. there: FLOP/s of the one that will train.

    Raises:
        SettingError: the budget does not pay for any.
    """
    model, path = family.model, folder / "ladder.json"
    asked = {
        "model": model.model_dump(mode="json"), "context": family.context,
        "rate": config.train.optimizer.rate, "seconds": seconds,
    }  # fmt: skip
    known: Mapping[str, Any] = read_json(path) if path.exists() else {}
    if known.get("asked") != asked:
        known = {"asked": asked} | _chosen(family, seconds, here, there)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    models = tuple(resized(model, width) for width in known["widths"])
    rate = transferred(config.train.optimizer.rate, config, model.width, models[0].width)
    return Ladder(models, tuple(known["tokens"]), rate, known["seconds"])


def _chosen(family: Family, seconds: float, here: Speed, there: float) -> dict[str, Any]:
    paid = min(SHARE * seconds, LONGEST)
    units = sum(SIZES) * sum(LENGTHS) + RATES * LENGTHS[1]  # of the smallest run
    affordable = math.sqrt(paid * here.rate / (6 * units * LEAST_RATIO))
    wanted = math.sqrt(seconds * there / (6 * TOKENS_PER_PARAMETER)) / SMALLER
    models = _nearest(family, min(wanted, affordable))
    runs = [(model, times) for model in models for times in LENGTHS]
    runs += [(models[0], LENGTHS[1])] * RATES
    overheads = {model.width: here.overhead(model) for model in models}

    def seconds_of(tokens: int) -> float:
        return sum(
            _seconds_of(family, model, tokens * times, here.rate, overheads[model.width])
            for model, times in runs
        )

    tokens = LEAST_STEPS * family.context // 2  # the first steps tell little of later ones
    while seconds_of(2 * tokens) <= paid:
        tokens *= 2
    takes = seconds_of(tokens)
    if takes > MOST * seconds:
        raise SettingError(
            f"--budget: the smallest micro-runs would take {takes:,.0f} seconds of "
            f"{seconds:,.0f}; give more time, or a smaller model.vocabulary or train.context"
        )
    return {
        "widths": [model.width for model in models],
        "tokens": [tokens * times for times in LENGTHS],
        "seconds": takes,
    }


def _seconds_of(
    family: Family, model: TransformerConfig, tokens: int, rate: float, overhead: float
) -> float:
    """Of a micro-run that reads this number of tokens."""
    cost, rows = family.cost(model), batch_size_for(tokens, family.context)
    flops = tokens * cost.training_flops
    flops += 2 * EVALUATED * cost.forward_flops  # it is measured before and after
    return BESIDES + flops / rate + tokens / (rows * family.context) * overhead


def _nearest(family: Family, parameters: float) -> list[TransformerConfig]:
    """The sizes that are nearest to these parameters, twice and four times as many."""
    sizes: list[TransformerConfig] = []
    for size in family.sizes():
        sizes.append(size)
        if len(sizes) >= FIRST and family.parameters(size) > SIZES[-1] * parameters:
            break
    found: list[TransformerConfig] = []
    for times in SIZES:
        below = found[-1].width if found else 0
        found.append(
            min(
                (size for size in sizes if size.width > below),
                key=lambda size: abs(math.log(family.parameters(size) / (times * parameters))),
            )
        )
    return found


def best_rate(loss: Callable[[float], float], rate: float) -> tuple[float, bool]:
    """The rate of the lowest loss, and whether a higher and a lower one were tried and are worse.

    Rates are a factor of 3 from each other, `rate` among them. Of the best three, the vertex of
    the parabola over log rate counts. A loss that is no number, of a run that diverged, is above
    all others.
    """

    def at(power: int) -> float:
        return comparable(loss(rate * FACTOR**power))

    tried = {power: at(power) for power in (-1, 0, 1)}
    while len(tried) < MOST_RATES:
        best = min(tried, key=tried.__getitem__)
        if best not in (min(tried), max(tried)):
            break
        further = best + (1 if best > 0 else -1)
        tried[further] = at(further)
    best = min(tried, key=tried.__getitem__)
    if best in (min(tried), max(tried)):
        return rate * FACTOR**best, False
    around = range(best - 1, best + 2)
    return lowest([rate * FACTOR**n for n in around], [tried[n] for n in around]), True


def _rounded(rate: float) -> float:
    """To two digits, as it is shown and pasted."""
    return float(f"{rate:.2g}")
