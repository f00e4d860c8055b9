"""`culm chat`: before the dialogue, what the model was trained on."""

from __future__ import annotations

from shlex import quote

import typer

from culm.config import SettingError
from culm.convert.card import is_base
from culm.serve.terminal import Terminal
from culm.text.language_model import LanguageModel


def chat(
    loaded: LanguageModel, name: str, system: str | None, max_tokens: int | None,
    temperature: float | None, top_p: float, seed: int | None,
) -> None:  # fmt: skip
    """Talk to the model that `name` named.

    Raises:
        SettingError: it has no chat template.
    """
    stages = loaded.model.trained_on
    if loaded.tokenizer.template is None:
        raise SettingError(
            f"{name}: it has no chat template, so it is most likely a base model, which continues "
            f"a text and was not trained to answer: culm generate {quote(name)} TEXT. "
            f"culm train sft start.path={quote(name)} start.chat=true trains it to answer."
        )
    if is_base(stages):
        typer.echo(
            f"{name} is a base model: it was trained on {', then on '.join(stages)} and continues "
            f"a text, and was not trained to answer. `culm generate {quote(name)} TEXT` continues "
            f"a text; `culm train sft start={quote(name)}` trains it to answer."
        )
    elif stages:
        typer.echo(f"{name} was trained on {', then on '.join(stages)}; ask about these.")
    Terminal(loaded, system, max_tokens, temperature, top_p, seed).run()
