"""`culm chat`: a dialogue with a model that is loaded here, or with one of a server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from shlex import quote

import typer

from culm.config import SettingError
from culm.convert.card import is_base
from culm.endpoint import EndpointError, endpoint_at
from culm.engine.speculation import Speculation
from culm.exits import RunError
from culm.model.ability import require_vocabulary
from culm.model.quantized_cache import CacheKind
from culm.serve.terminal.models import ChatSettings, LoadedModel, Responder, ServedModel
from culm.serve.terminal.terminal import Terminal
from culm.text.language_model import LanguageModel

TIMEOUT = 600.0  # seconds that a server may say nothing, as it may be busy


class NoAnswer(RunError):
    """The question of a pipe has no answer."""


@dataclass(frozen=True)
class Options:
    """key: of the API of a server; the others are those of `culm.load`."""

    key: str | None
    context: int | None
    cache: CacheKind
    speculate: Speculation | None
    draft: str | None
    device: str
    dtype: str


def chat(
    model: str, system: str | None, settings: ChatSettings, as_json: bool, options: Options
) -> None:
    """Talk to a model; a question from a pipe is answered, and nothing else is printed.

    Raises:
        SettingError: the model has no chat template, or the server does not answer.
        NoAnswer: the question of a pipe could not be answered.
    """
    piped = not sys.stdin.isatty()
    responder = _responder(model, options, quiet=piped or as_json)
    terminal = Terminal(responder, settings, system or "", as_json=as_json)
    if not piped:
        return terminal.run()
    question = sys.stdin.read().strip()
    if not question:
        raise SettingError("standard input: there is no question in it")
    try:
        terminal.ask_once(question)
    except (ValueError, EndpointError) as error:
        raise NoAnswer(str(error)) from None


def _responder(model: str, options: Options, quiet: bool) -> Responder:
    if model.startswith(("http://", "https://")):
        return ServedModel(endpoint_at(model, TIMEOUT, options.key))
    import culm

    loaded = culm.load(
        model, options.device, options.dtype, options.context, cache=options.cache,
        speculate=options.speculate, draft=options.draft,
    )  # fmt: skip
    said = introduction(loaded, model)
    if said and not quiet:
        typer.echo(said)
    return LoadedModel(loaded, model)


def introduction(loaded: LanguageModel, name: str) -> str:
    """What the model was trained on, "" where that is not known.

    Raises:
        SettingError: it has no chat template, or a scalar head.
    """
    require_vocabulary(loaded.model)
    stages = loaded.model.trained_on
    if loaded.tokenizer.template is None:
        raise SettingError(
            f"{name}: it has no chat template, so it is most likely a base model, which continues "
            f"a text and was not trained to answer: culm generate {quote(name)} TEXT. "
            f"culm train sft start.path={quote(name)} start.chat=true trains it to answer."
        )
    if is_base(stages):
        return (
            f"{name} is a base model: it was trained on {', then on '.join(stages)} and continues "
            f"a text, and was not trained to answer. `culm generate {quote(name)} TEXT` continues "
            f"a text; `culm train sft start={quote(name)}` trains it to answer."
        )
    if stages:
        return f"{name} was trained on {', then on '.join(stages)}; ask about these."
    return ""
