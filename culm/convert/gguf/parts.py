"""A model in one GGUF file, or in several parts: `NAME-00001-of-00003.gguf` and so on.

The first part has all metadata; each part has some of the tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import gguf

from culm.config import SettingError
from culm.convert.gguf import header

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.I)


def read_parts(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    """The metadata and all tensors of a model; path: its file, or its first part.

    Raises:
        SettingError: a file is broken, or a part is missing, renamed, or of another model.
    """
    fields, tensors = _open(path)
    number, count = _place(fields, path)
    if count == 1:
        return fields, tensors
    found = NAME.fullmatch(path.name)
    if found is None or (int(found[2]), int(found[3])) != (number + 1, count):
        wanted = f"-{number + 1:05}-of-{count:05}.gguf"
        raise SettingError(
            f"{path}: it is part {number + 1} of {count}, and its name must end with {wanted}; "
            "rename it"
        )
    names = [path.with_name(f"{found[1]}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    if number:
        raise SettingError(f"{path}: it is part {number + 1} of {count}; give part 1, {names[0]}")
    for n, part in enumerate(names[1:], start=1):
        if not part.is_file():
            raise SettingError(
                f"{path}: it is part 1 of {count}, and {part.name} is missing; put all parts into "
                "one folder"
            )
        own, more = _open(part)
        if _place(own, part) != (n, count):
            raise SettingError(f"{part}: it is not part {n + 1} of {count}; download it again")
        tensors += more
    _check(fields, tensors, path)
    return fields, tensors


def _open(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    fields = header.read(path)
    try:
        return fields, list(gguf.GGUFReader(path).tensors)
    except Exception as error:  # the package raises many kinds
        raise SettingError(f"{path}: broken or not a GGUF file: {error}") from None


def _place(fields: dict[str, Any], path: Path) -> tuple[int, int]:
    """The index of a part and the number of parts; (0, 1) for a whole file."""
    found = [fields.get(f"split.{key}", default) for key, default in (("no", 0), ("count", 0))]
    number, count = found
    if not all(type(each) is int for each in found) or not 0 <= number < max(count, 1) < 100_000:
        raise SettingError(f"{path}: split.no {number!r} of split.count {count!r}: broken")
    return number, max(count, 1)


def _check(fields: dict[str, Any], tensors: list[gguf.ReaderTensor], path: Path) -> None:
    counts = Counter(tensor.name for tensor in tensors)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SettingError(f"{path}: tensor {twice[0]} is in several parts; download them again")
    wanted = fields.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise SettingError(
            f"{path}: its parts contain {len(tensors)} tensors, and {wanted} are declared; "
            "download them again"
        )
