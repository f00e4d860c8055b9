"""Settings of a server, from a file: `culm serve MODEL --config serve.yaml`."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from culm.config import Config, SettingError, parse
from culm.convert.load import on_hub
from culm.serve.clients import KeyConfig


class ServeConfig(Config):
    """Where a server listens, who may ask, and its limits.

    host, port: where it listens. slots: requests that run at once. waiting: requests that wait in
        addition; further ones are refused. prefix_tokens: tokens of earlier prompts that are kept,
        so that prompts that begin alike are read once; 0: none.
    keys: API keys; without any, everyone who reaches the server may ask.
    queue_seconds: a request that has no first token by then is refused with status 503.
    answer_seconds: an answer that is not complete by then ends with an error.
    drain_seconds: running answers may take so long after SIGTERM.
    grpc_port: also serve gRPC there; 0: any free port.
    tls_certificate, tls_key: PEM files, for gRPC; HTTP leaves TLS to a reverse proxy.
    body_bytes: of a request, at most. allowed_hosts: names in the header `Host` besides localhost
        that are accepted on a server that listens on this machine only, for a reverse proxy.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    slots: PositiveInt = 8
    waiting: NonNegativeInt = 64
    prefix_tokens: NonNegativeInt = 4096
    keys: tuple[KeyConfig, ...] = ()
    queue_seconds: PositiveFloat = 60.0
    answer_seconds: PositiveFloat = 3600.0
    drain_seconds: PositiveFloat = 30.0
    body_bytes: PositiveInt = 4 << 20
    allowed_hosts: tuple[str, ...] = ()
    grpc_port: int | None = Field(None, ge=0, le=65535)
    tls_certificate: str | None = None
    tls_key: str | None = None

    @model_validator(mode="after")
    def _pair(self) -> ServeConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_key: a certificate and its key belong together")
        return self


def read_settings(path: str | None, **given: object) -> ServeConfig:
    """The settings of a file; those that are given and not None take the place of its own.

    Raises:
        SettingError: it cannot be read, or a setting is not valid.
    """
    values: object = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingError(f"{path}: it cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: it is not a mapping of settings")
    chosen = {name: value for name, value in given.items() if value is not None}
    return parse(ServeConfig, {**values, **chosen}, path or "serve")


def served_name(model: str) -> str:
    """The name of a model in the API: of its run, its folder or file, or its full id on the hub."""
    path = Path(model).expanduser().resolve()
    if on_hub(model) and not path.exists():
        return model
    in_run = path.name == "model" and (path.parent / "run.yaml").is_file()
    return path.parent.name if in_run else path.name
