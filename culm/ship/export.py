"""`culm export --for`: the folder that another program or service takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from culm.config import SettingError, parse
from culm.convert.export import write_made_of
from culm.convert.load import refuse_overwrite
from culm.ship.targets import Target


def export_for(
    source: str, out: str | Path, target: object, dtype: str = "", family: str = ""
) -> Path:
    """Write the folder of a target. target: its name, or a mapping with its `kind` and settings.

    dtype, family: as in `culm.convert.export.export`.

    Raises:
        SettingError: there is no such target, or it does not take this model.
    """
    if not isinstance(target, str | Mapping):
        raise SettingError("--for: expected a name such as ollama, or a mapping with its kind")
    if Path(out).suffix.lower() == ".gguf":
        raise SettingError(f"{out}: with --for it is a folder; give a name without .gguf")
    chosen, out = parse(Target, target, "--for"), Path(out)
    refuse_overwrite(source, out)
    chosen.write(source, out, dtype, family)
    written = target if isinstance(target, str) else json.dumps(target)
    options = {"--for": written, "--dtype": dtype, "--family": family}
    words = [word for name, value in options.items() if value for word in (name, value)]
    write_made_of(source, out, "export", *words)
    return out
