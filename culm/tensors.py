"""Files of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from culm.config import SettingError


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, one at a time.

    Raises:
        SettingError: the file is missing, truncated, or no safetensors file.
    """
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            # A copy, as the file's own bytes are not aligned: products would differ by a bit.
            yield name, file.get_tensor(name).clone()


def read_metadata(path: Path) -> dict[str, str]:
    """What else the file says.

    Raises:
        SettingError: as `read_safetensors`.
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        reason = f"broken or no safetensors file ({error})"
        raise SettingError(f"{path}: {reason}; copy it again") from None


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Tensors by name; readable by whom any new file is, where `save_file` thinks of its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(mode)
