"""What `culm plan` shows of a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from culm.data.loader import Loader
from culm.data.mix import Points
from culm.data.mixture import Mixture
from culm.parallel.ranks import Ranks
from culm.run.assemble import check_ends, loader
from culm.run.mixing import mixture_of, names_of, shares_in_words, sizes_of, verify_others
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer

UNKNOWN = "the shares go with the rows of each corpus, known once the run's text is prepared"


def planned_mixture(
    config: RunConfig, tokenizer: Tokenizer, rows: Loader, context: int, ranks: int, share: float
) -> Mixture | None:
    """As the run would have it; None without one, or where its shares are not known yet.

    rows: of the run's own corpus, or of the first. share: of its text that they hold; 0 where it is
    not known.

    Raises:
        SettingError: a corpus cannot be read with the others, or would be read too often.
    """
    if not config.data.mix or (not share and config.data.mix[0].weight is None):
        return None
    verify_others(config)
    here = Ranks(count=ranks)

    def load(folder: Path) -> Loader:
        return loader(config, tokenizer, folder, context, here, "train")

    mixed = mixture_of(config, rows, load, here, share=share)
    for one in mixed.corpora:
        check_ends(one, tokenizer)
    return mixed


def mixture_facts(
    config: RunConfig, mixed: Mixture | None, rows: Loader, share: float
) -> list[tuple[str, ...]]:
    """For each corpus tokens, share and epochs, and how its weight changes."""
    if not config.data.mix:
        return []
    if mixed is None:
        return [("mix", UNKNOWN)]
    sizes = sizes_of(mixed.corpora, rows, share)
    facts: list[tuple[str, ...]] = []
    for said in shares_in_words(config, mixed, sizes):
        facts.append(("" if facts else "mix", said))
    others = zip(names_of(config), mixed.corpora, strict=True)
    facts += [("", f"{name}: {one.packing}") for name, one in others if one is not rows]
    return facts + [("", said) for said in _changes(config)]


def _changes(config: RunConfig) -> Iterator[str]:
    """A sentence for each weight that changes over the steps."""
    for name, one in zip(names_of(config), config.data.mix, strict=True):
        if isinstance(one.weight, Points):
            yield f"{name}: weight {_points(one.weight)}"


def _points(weight: Points) -> str:
    joint = ", then " if weight.between == "constant" else ", evenly to "
    points = (f"{weight.points[step]:g} at step {step:,}" for step in sorted(weight.points))
    return joint.join(points)
