"""What an objective asks of the model as it is at the start, computed once for a whole corpus.

    runs/x/precomputed.safetensors    a number for each sequence, their SHA-256, and a fingerprint
                                      of the data, the model and the settings that they come from

A run that resumes reads it. It is written again if it is missing, damaged, or of something else;
`culm.run.resume` refuses a run whose data or start changed.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from culm import log
from culm.atomic import atomic
from culm.config import SettingError
from culm.data.loader import Loader
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import unsharded
from culm.run.assemble import Assembly
from culm.safetensors import read_metadata, read_safetensors, write_safetensors

CALIBRATED = 250_000  # targets of the rows that an objective is calibrated on
NAME, FINGERPRINT, SUM = "precomputed.safetensors", "fingerprint", "sha256"


def calibrate(run: Assembly, rows: Loader) -> None:
    """Let the objective fit to rows from all over the corpus what is no weight. Every rank does so
    with the same rows.
    """
    with unsharded(run.model):
        run.objective.calibrate(rows.sample(CALIBRATED), run.config.seed)


def add_precomputed(run: Assembly, rows: Loader) -> None:
    """Add the columns that the objective precomputes to the rows; before the first step, and before
    a checkpoint is restored. Every rank calls it.
    """
    if not run.objective.precomputes:
        return
    path, fingerprint = run.folder / NAME, _fingerprint(run, rows)
    known = _read(path, fingerprint)
    if not all(run.ranks.everyone(known is not None)):
        known = _compute(run, rows)
        if run.ranks.writer:
            with atomic(path) as fresh:
                facts = {FINGERPRINT: fingerprint, SUM: _sum(known)}
                write_safetensors(fresh, known, facts)
        run.ranks.wait()
    assert known is not None
    rows.add_columns(known)


def _fingerprint(run: Assembly, rows: Loader) -> str:
    """Of data, model and settings."""
    config = run.config
    facts = (
        rows.fingerprint, run.base, config.seed, config.model, config.start, config.upcycle,
        config.extend, config.train.objective, config.train.qat,
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    try:
        facts = read_metadata(path) if path.is_file() else {}
        if facts.get(FINGERPRINT) != fingerprint:
            return None
        known = dict(read_safetensors(path))
        if facts.get(SUM) == _sum(known):
            return known
        log.say(f"{path}: its SHA-256 differs; it is computed again.")
    except SettingError as error:
        log.say(f"{error}; it is computed again.")
    return None


def _sum(columns: dict[str, Tensor]) -> str:
    """SHA-256 of names and numbers."""
    digest = hashlib.sha256()
    for name, values in sorted(columns.items()):
        digest.update(name.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _compute(run: Assembly, rows: Loader) -> dict[str, Tensor]:
    """The columns over all rows; each rank computes a share, with the same number of forwards, as
    sharded models need.
    """
    ranks, device = run.ranks, run.model.device
    names = run.objective.precomputes
    batches = -(-rows.rows // rows.micro_rows)
    rounds = -(-batches // ranks.count)
    own: list[dict[str, list[float]]] = []
    share = islice(rows.sample(rows.targets), ranks.rank, None, ranks.count)
    spare = next(iter(rows.sample(1)))
    with log.progress("reference", rounds, "batches") as bar:
        for _ in range(rounds):
            batch = next(share, None)
            found = run.objective.precompute((batch or spare).to(device))
            if batch is not None:
                own.append({name: found[name].tolist() for name in names})
            bar.advance(1)
    return _joined(own, names, ranks)


def _joined(
    own: list[dict[str, list[float]]], names: tuple[str, ...], ranks: Ranks
) -> dict[str, Tensor]:
    """The columns of all batches in their order: batch n is the one of rank n % count."""
    every = ranks.gather(own)
    count = sum(map(len, every))
    ordered = [every[n % ranks.count][n // ranks.count] for n in range(count)]
    return {name: torch.tensor([x for one in ordered for x in one[name]]) for name in names}
