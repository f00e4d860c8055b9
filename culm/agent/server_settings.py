"""The file that names MCP servers, as other assistants have it.

mcpServers:
  files: {command: mcp-files, args: [/data], env: {TOKEN: "${FILES_TOKEN}"}}
  search: {url: "https://mcp.example/mcp", headers: {Authorization: "Bearer ${SEARCH_KEY}"}}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from culm.config import Config, SettingError, parse

VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_]\w*)\}")


class ServerConfig(Config):
    """A program that is started (command), or a server at a URL. `${NAME}` in env and headers is
    the value of an environment variable; no other variable of ours reaches the program, besides
    the usual ones such as PATH.
    """

    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = Field({})
    cwd: str | None = None
    url: str | None = Field(None, pattern="^https?://")
    headers: Mapping[str, str] = Field({})
    type: Literal["stdio", "http", "streamable-http", "streamableHttp"] | None = None
    disabled: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> ServerConfig:
        if (self.command is None) == (self.url is None):
            raise ValueError("command: give a command or a url")
        return self


class ServersFile(Config):
    mcpServers: dict[str, ServerConfig]  # noqa: N815 - the name that others read


def read_servers(path: Path) -> dict[str, ServerConfig]:
    """The servers of a file, YAML or JSON, that are not disabled.

    Raises:
        SettingError: it cannot be read, or is no such file.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path}: it cannot be read: {error}") from None
    found = parse(ServersFile, given, str(path)).mcpServers
    return {name: one for name, one in found.items() if not one.disabled}


def filled(values: Mapping[str, str], where: str) -> dict[str, str]:
    """Values with the environment variables that they name."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise SettingError(f"{where}: the environment variable {found[1]} is not set")
        return os.environ[found[1]]

    return {name: VARIABLE.sub(value, text) for name, text in values.items()}
