"""What `culm plan` shows of a curriculum."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from culm.data.difficulty import Examples, ReferenceLoss
from culm.data.loader import Loader
from culm.data.order import Graded, Grading
from culm.data.prepared import Prepared
from culm.run.difficulty import NAME, grading_of, reference, reference_path, stored_losses
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer

QUANTILES = (0, 25, 50, 75, 100)


def planned_grading(config: RunConfig, tokenizer: Tokenizer) -> Grading | None:
    """As the run would have it; a reference model whose losses are not stored is only loaded, since
    they may take long. Rows are then packed as if the order of the corpus were that of its losses.
    """
    curriculum, path = config.data.curriculum, reference_path(config)
    if curriculum is None or path is None:
        return grading_of(config, tokenizer)
    reference(config, tokenizer, path)

    def measure(prepared: Prepared, examples: Examples) -> np.ndarray:
        known = stored_losses(config, prepared, examples)
        return examples.starts if known is None else known

    return Grading(curriculum, measure)


def is_graded(config: RunConfig) -> bool:
    """Whether the order of a plan is that of the run."""
    return reference_path(config) is None or (Path(config.folder) / NAME).exists()


def curriculum_facts(config: RunConfig, rows: Loader) -> list[tuple[str, ...]]:
    """Quantiles of the difficulty, and how much is read at the start."""
    curriculum = config.data.curriculum
    if curriculum is None:
        return []
    by, strategy = curriculum.difficulty.kind, curriculum.strategy.kind
    first = "hardest" if curriculum.hardest_first else "easiest"
    start, end = curriculum.part(0)
    facts: list[tuple[str, ...]] = [
        ("curriculum", f"{strategy} by {by}, {first} first"),
        ("", f"step 1 reads {100 * (end - start):.1f} % of the rows, and all steps after "
         f"{curriculum.steps:,} read all"),
    ]  # fmt: skip
    if isinstance(rows.order, Graded) and not isinstance(curriculum.difficulty, ReferenceLoss):
        found = np.percentile(rows.order.difficulty, QUANTILES)
        shown = ", ".join(f"{value:.4g}" for value in found)
        facts.append(("difficulty", f"{shown} (0, 25, 50, 75 and 100 % of the rows)"))
    else:
        facts.append(("difficulty", "losses of the reference model, computed when the run starts"))
    return facts
