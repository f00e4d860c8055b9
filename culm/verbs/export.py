"""`culm export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path

from culm.compose import read_value
from culm.convert.export import export, size_of
from culm.convert.load import refuse_overwrite
from culm.files import refuse_existing


def export_model(
    model: str, out: str, target: str | None, dtype: str, family: str, overwrite: bool
) -> str:
    """Write it and give a line about it. target: of `--for`; the others as in `export`."""
    refuse_overwrite(model, out)
    refuse_existing(Path(out), overwrite)
    if target is None:
        path = export(model, out, dtype, family)
        return f"{path}: {size_of(path) / 1e6:,.1f} MB of weights"
    from culm.ship.export import export_for

    path = export_for(model, out, read_value("--for", target), dtype, family)
    return f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))}"
