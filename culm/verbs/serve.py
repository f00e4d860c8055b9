"""`culm serve`: a model and its adapters over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from culm.config import SettingError
from culm.engine.speculation import Speculation
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer
from culm.serve.clients import clients_of
from culm.serve.http.server import check_exposed, check_packages, check_port
from culm.serve.settings import ServeConfig, served_name
from culm.text.language_model import LanguageModel
from culm.tokenizer.tokenizer import Tokenizer

Reload = Callable[[], tuple[Transformer, Tokenizer]]


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


@dataclass(frozen=True)
class Options:
    """How a model is loaded. adapter: NAME=FOLDER. reload: its weights may be read again.
    draft_model: as `draft` of `culm.load`.
    """

    adapter: Sequence[str]
    context: int | None
    cache: CacheKind
    speculate: Speculation | None
    device: str
    dtype: str
    reload: bool = False
    draft_model: str | None = None


def serve_model(
    model: str, fixture: str | None, settings: ServeConfig, api_key: str | None, options: Options
) -> None:
    """Check keys and address, then load the model, then serve it under its name.

    fixture: a script that answers instead of a model (`culm.serve.fixture`).

    Raises:
        SettingError: there is neither a model nor a script, or both, or one cannot be used.
    """
    check_source(model, fixture)
    clients = clients_of(settings.keys, api_key)
    check_exposed(settings.host, clients)
    check_packages(settings)
    check_port(settings.host, settings.port)
    from culm.serve.http import server

    loaded, name, again = loaded_model(model, fixture, options)
    server.serve(loaded, name, settings, clients, again)


def check_source(model: str, fixture: str | None) -> None:
    """SettingError unless there is either a model or a script."""
    if bool(model) == bool(fixture):
        raise SettingError("MODEL: give a run or model folder, or --fixture SCRIPT")


def loaded_model(
    model: str, fixture: str | None, options: Options
) -> tuple[LanguageModel, str, Reload | None]:
    """A model, its name, and what reads its weights again, if that is wanted.

    Raises:
        SettingError: one of them cannot be used.
    """
    if fixture:
        from culm.serve.fixture import ScriptedModel, read_script

        return ScriptedModel(read_script(fixture)), "fixture", None
    loaded, again = _read(model, options)
    return loaded, served_name(model), again


def _read(model: str, options: Options) -> tuple[LanguageModel, Reload | None]:
    import culm
    from culm.adapt.quantize.linear import is_quantized
    from culm.convert.load import read

    adapters = named_adapters(options.adapter)
    loaded = culm.load(
        model, options.device, options.dtype, options.context, adapters=adapters,
        cache=options.cache, speculate=options.speculate, draft=options.draft_model,
    )  # fmt: skip
    if not options.reload:
        return loaded, None
    if adapters or is_quantized(loaded.model):
        raise SettingError("--reload: quantised weights and --adapter cannot be read again")
    mtp = options.speculate == "mtp"
    return loaded, partial(read, model, options.device, options.dtype, mtp=mtp)
