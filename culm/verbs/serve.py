"""`culm serve`: a model and its adapters over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from culm.config import SettingError
from culm.engine.speculation import Speculation
from culm.model.quantized_cache import CacheKind
from culm.serve.http.server import check_exposed, check_port


def named_adapters(pairs: Iterable[str]) -> dict[str, str]:
    """NAME=FOLDER, several times, as a mapping.

    Raises:
        SettingError: one is not of this form, or a name is given twice.
    """
    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise SettingError(f"--adapter: {pair!r} is not NAME=FOLDER")
        if name in named:
            raise SettingError(f"--adapter: {name!r} is given twice")
        named[name] = folder
    return named


def served_name(model: str) -> str:
    """The name of a model in the API: of its run, its folder or file, or its full id on the hub."""
    from culm.convert.load import on_hub

    path = Path(model).expanduser().resolve()
    if on_hub(model) and not path.exists():
        return model
    in_run = path.name == "model" and (path.parent / "run.yaml").is_file()
    return path.parent.name if in_run else path.name


def serve_model(
    model: str,
    host: str,
    port: int,
    api_key: str | None,
    slots: int,
    adapter: Iterable[str],
    context: int | None,
    cache: CacheKind,
    speculate: Speculation | None,
    device: str,
    dtype: str,
    reload: bool = False,
    prefix_tokens: int = 0,
    draft_model: str | None = None,
) -> None:
    """Check the address, then load the model, then serve it under its name.

    reload: accept requests to read its weights again. prefix_tokens: as in
    `Engine`. draft_model: `draft` of `culm.load`.
    """
    check_exposed(host, api_key)
    check_port(host, port)
    import culm
    from culm.adapt.quantize.linear import is_quantized
    from culm.convert.load import read
    from culm.serve.http import server

    adapters = named_adapters(adapter)
    loaded = culm.load(
        model,
        device,
        dtype,
        context,
        adapters=adapters,
        cache=cache,
        speculate=speculate,
        draft=draft_model,
    )
    if reload and (adapters or is_quantized(loaded.model)):
        raise SettingError("--reload: quantised weights and --adapter cannot be read again")
    again = partial(read, model, device, dtype, mtp=speculate == "mtp") if reload else None
    server.serve(loaded, served_name(model), host, port, api_key, slots, again, prefix_tokens)
