"""The mixture of a run: the corpora that `data.mix` names, with the run's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isinf
from pathlib import Path

from culm.config import SettingError
from culm.data.loader import Loader
from culm.data.manifest import Manifest
from culm.data.mix import weights_of
from culm.data.mixture import Mixture
from culm.data.prepared import verify
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig

OWN = "this run's own text"


def mixture_of(
    config: RunConfig,
    first: Loader,
    load: Callable[[Path], Loader],
    ranks: Ranks,
    share: float = 1.0,
) -> Mixture:
    """All corpora of a run that mixes some.

    first: rows of `config.data.corpus`, or of the run's own text. load: rows of another folder.
    share: of the text of `first` that it holds, in a plan; 0 if unknown.

    Raises:
        SettingError: a corpus cannot be read with the others, or would be read too often.
    """
    data, train = config.data, config.train
    corpora = list[Loader]()
    for place, folder in enumerate(_others(config)):
        with _naming(place):
            corpora.append(first if folder is None else load(folder))
    sizes = sizes_of(corpora, first, share)
    weights = weights_of(data.mix, sizes, data.temperature)
    mixed = Mixture(
        corpora, weights, train.batch_size, train.at_once, config.seed, ranks.rank, ranks.count,
        train.batch_ramp,
    )  # fmt: skip
    _check_epochs(config, mixed, sizes)
    return mixed


def sizes_of(corpora: Sequence[Loader], first: Loader, share: float) -> list[float]:
    """Rows of each corpus; infinite for the first if its share is not known."""
    whole = first.rows / share if share else inf
    return [whole if one is first else float(one.rows) for one in corpora]


def verify_others(config: RunConfig) -> None:
    """Read every file of the corpora besides the run's own.

    Raises:
        SettingError: one is missing, or was changed since it was written.
    """
    for place, folder in enumerate(_others(config)):
        with _naming(place):
            if folder is not None:
                verify(folder)


@contextmanager
def _naming(place: int) -> Iterator[None]:
    """Errors name the entry of the mixture."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"data.mix[{place}].corpus: {error}") from None


def _others(config: RunConfig) -> list[Path | None]:
    """The folder of each entry of the mixture; None for the run's own corpus."""
    own = config.data.corpus
    return [None if one.corpus == own else one.corpus for one in config.data.mix]


def names_of(config: RunConfig) -> list[str]:
    """What each corpus of the mixture is, in its order."""
    return [OWN if one.corpus is None else str(one.corpus) for one in config.data.mix]


def sources_of(config: RunConfig) -> Iterator[str]:
    """What the corpora besides the run's own were prepared from."""
    for folder in _others(config):
        if folder is not None:
            yield Manifest.read(folder).source


def shares_in_words(config: RunConfig, mixed: Mixture, sizes: Sequence[float]) -> Iterator[str]:
    """For each corpus what the run reads of it: its tokens, its share of all rows, and its epochs.

    sizes: rows of each, where a plan has only a sample of them.
    """
    read = mixed.reads(config.train.steps)
    for name, one, rows, size in zip(names_of(config), mixed.corpora, read, sizes, strict=True):
        tokens = round(rows.rows * one.tokens_per_row)
        yield (
            f"{name}: {tokens:,} tokens, {100 * rows.share:.1f} % of the rows, "
            + _epochs(rows.rows, size)
        )


def _epochs(rows: int, size: float) -> str:
    return "epochs not known" if isinf(size) else f"{rows / size:.2f} epochs"


def _check_epochs(config: RunConfig, mixed: Mixture, sizes: Sequence[float]) -> None:
    read, steps = mixed.reads(config.train.steps), config.train.steps
    for place, (one, rows, size) in enumerate(zip(config.data.mix, read, sizes, strict=True)):
        epochs, limit = rows.rows / size, one.max_epochs
        if limit is not None and rows.rows > limit * size:
            raise SettingError(
                f"data.mix[{place}].max_epochs: {names_of(config)[place]} would be read "
                f"{epochs:.2f} times in train.steps={steps}, more than the {limit:g} that are "
                "allowed; lower its weight or the steps, add text, or raise the limit"
            )
        if not rows.rows:
            raise SettingError(
                f"data.mix[{place}]: {names_of(config)[place]} has no row in train.steps={steps}; "
                "raise its weight or the steps, or leave it out"
            )
