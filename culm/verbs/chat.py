"""`culm chat`: a word before the dialogue about a model that was not trained on dialogues."""

from __future__ import annotations

import typer

from culm.compose import read_yaml
from culm.config import SettingError
from culm.convert.load import find_model
from culm.serve.terminal import Terminal
from culm.text.language_model import LanguageModel
from culm.train.run_folder import SETTINGS


def chat(
    loaded: LanguageModel, name: str, system: str | None, max_tokens: int | None,
    temperature: float, top_p: float, seed: int | None,
) -> None:  # fmt: skip
    """Talk to the model that `name` named."""
    if is_base(name):
        typer.echo(
            f"{name} is a base model: it was trained on plain text and continues it, and was not "
            f"trained to answer. `culm generate {name} TEXT` continues a text; "
            f"`culm train sft start={name}` trains it to answer."
        )
    Terminal(loaded, system, max_tokens, temperature, top_p, seed).run()


def is_base(name: str) -> bool:
    """Whether the run of a model says that it learned to continue plain text."""
    path = find_model(name)
    run = next((f for f in (path / SETTINGS, path.parent / SETTINGS) if f.is_file()), None)
    if run is None:
        return False
    try:
        values = read_yaml(run)
    except SettingError:  # of something else
        return False
    data, train = values.get("data"), values.get("train")
    if not isinstance(data, dict) or not isinstance(train, dict) or data.get("prepared"):
        return False
    return (_kind(data.get("format")), _kind(train.get("objective"))) == ("document", "next_token")


def _kind(part: object) -> object:
    return part.get("kind") if isinstance(part, dict) else part
