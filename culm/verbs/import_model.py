"""`culm import`: a model of another format as a Culm folder."""

from __future__ import annotations

from pathlib import Path

from culm.config import SettingError
from culm.convert import hf, native, teaching_json
from culm.convert.card import read_trained_on
from culm.convert.export import write_made_of
from culm.convert.load import download, find_model, load_model, on_hub, refuse_overwrite
from culm.files import refuse_existing


def import_model(
    path: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
) -> str:
    """Convert a model into a Culm folder, or a .json of model settings into a settings file.

    overwrite: replace what is there. Returns one sentence about what was written.
    """
    out = Path(out)
    refuse_overwrite(path, out)
    if tokenizer is not None and Path(path).suffix != ".bin":
        raise SettingError(
            f"--tokenizer: {path} has its own tokenizer; the option is for a .bin file of llama2.c"
        )
    if Path(path).suffix == ".json" and Path(path).is_file():
        config = teaching_json.read(path)
        out = out if out.suffix in (".yaml", ".yml") else out.with_name(f"{out.name}.yaml")
        refuse_existing(out, overwrite)
        teaching_json.write(config, out)
        return f"{out}: settings of a model with {config.layers} layers of width {config.width}"
    refuse_existing(out, overwrite)
    source = find_model(path)
    if not source.exists() and on_hub(str(path)):
        source = Path(download(str(path)))
    if hf.is_model(source) and not native.is_model(source):  # one tensor at a time
        config, weights, own = hf.parts(source)
        native.stream(config, weights, own, out, str(source), read_trained_on(source))
    else:
        model, own = load_model(source, tokenizer=tokenizer)
        config = model.config
        native.save(model, own, out)
    write_made_of(path, out, "import", *(["--tokenizer", str(tokenizer)] if tokenizer else []))
    millions = sum(p.numel() for p in config.build(device="meta").parameters()) / 1e6
    return f"{out}: a model of {millions:,.2f} million parameters"
