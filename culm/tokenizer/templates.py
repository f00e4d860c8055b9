"""The chat templates of a folder: one that is used, and others by name, which are kept.

chat_template.jinja                    the default
additional_chat_templates/NAME.jinja   others, such as `tool_use`
tokenizer_config.json                  chat_template, of folders without these files
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.log import say
from culm.tokenizer.added import CONFIG

CHAT, MORE = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"


def read_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a folder by name. The files count more than the settings.

    Raises:
        SettingError: a template of the settings is not text.
    """
    listed = _listed(settings.get("chat_template"), folder / CONFIG)
    files = {DEFAULT: folder / CHAT} if (folder / CHAT).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}
    found = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    if found and listed and found != listed:
        say(f"{folder}: its .jinja files are read, and not the chat_template of {CONFIG}.")
    return found or listed


def _listed(given: Any, path: Path) -> dict[str, str]:
    """The templates of a setting: one text, or a list with names."""
    if given is None:
        return {}
    entries = given if isinstance(given, list) else [{"name": DEFAULT, "template": given}]
    try:
        found = {entry["name"]: entry["template"] for entry in entries}
    except (KeyError, TypeError):
        found = {"": None}
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise SettingError(f"{path}: chat_template: neither a text nor texts with names; remove it")
    return found


def named(templates: Mapping[str, str]) -> dict[str, Any]:
    """Several templates as a setting; none if there is only the default."""
    if not templates.keys() - {DEFAULT}:
        return {}
    return {"chat_template": [{"name": n, "template": text} for n, text in templates.items()]}


def write_templates(folder: Path, template: str | None, settings: Mapping[str, Any]) -> None:
    """Write the default and the others as files.

    Raises:
        SettingError: a name is not that of a file.
    """
    others = _listed(settings.get("chat_template"), folder / CONFIG)
    others.pop(DEFAULT, None)
    if template is not None:
        (folder / CHAT).write_text(template, encoding="utf-8")
    for name, text in others.items():
        if Path(name).name != name:
            raise SettingError(f"tokenizer: chat_template: {name!r} cannot name a file")
        (folder / MORE).mkdir(exist_ok=True)
        (folder / MORE / f"{name}.jinja").write_text(text, encoding="utf-8")
