"""Files that are not on this machine: `s3://`, `hf://`, `https://` and whatever fsspec reads."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from culm.config import SettingError, UnavailableError

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
VERSIONS = (
    "ETag", "etag", "sha256", "blob_id", "Last-Modified", "LastModified", "last_modified", "mtime",
    "created",
)  # fmt: skip  # what file systems say of the contents, the best first


class Unreachable(UnavailableError):
    """Data that is not read from here, and may be from another machine."""


@dataclass(frozen=True)
class Remote:
    """A file by its URL. It has what the readers ask of a `Path`.

    setting: what errors call it.
    """

    url: str
    setting: str = "data.path"

    def __str__(self) -> str:
        return self.url

    @property
    def _path(self) -> PurePosixPath:
        """Without what follows a `?`, in which HTTP asks for a download or signs a link."""
        web = self.url.lower().startswith(("http://", "https://"))
        return PurePosixPath(urlsplit(self.url).path if web else self.url)

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    @property
    def suffix(self) -> str:
        """As of a `Path`."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """As of a `Path`."""
        return self._path.suffixes

    def open(self, mode: str = "rb") -> BinaryIO:
        """The bytes, read in blocks and nothing kept on disk.

        Raises:
            SettingError: there is none, it may not be read, or the connection is lost later.
        """
        system, path = system_of(self.url, self.setting)
        try:
            return io.BufferedReader(_Stream(system.open(path, mode), self))
        except Exception as error:  # each file system has errors of its own
            raise unreachable(self.url, error, self.setting) from None

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the file system says of it.

        Raises:
            SettingError: it cannot be reached.
        """
        system, path = system_of(self.url, self.setting)
        try:
            return system.info(path)
        except Exception as error:  # each file system has errors of its own
            raise unreachable(self.url, error, self.setting) from None

    @property
    def version(self) -> str:
        """Its size, and what else the file system says of its contents."""
        facts = self.facts
        found = [f"{facts['size']} bytes"] if facts.get("size") is not None else []
        known = next((name for name in VERSIONS if facts.get(name) is not None), None)
        return ", ".join(found + ([f"{known} {facts[known]}"] if known else [])) or "unknown"


class _Stream(io.RawIOBase):
    """A remote file. A lost connection is no damage, for which a file may be left out."""

    def __init__(self, file: Any, remote: Remote) -> None:
        self._file, self._remote = file, remote

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._file.read(len(buffer))
        except Exception as error:  # each file system has errors of its own
            raise unreachable(self._remote.url, error, self._remote.setting) from None
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


File = Path | Remote


def is_url(name: str) -> bool:
    """Whether a path is a URL."""
    return URL.match(name) is not None


def size_of(file: File) -> int | None:
    """Bytes; None if nobody says it."""
    return file.stat().st_size if isinstance(file, Path) else file.facts.get("size")


def files_below(url: str, setting: str) -> list[Remote] | None:
    """Every file of a folder, sorted, without hidden ones; None for a URL of one file.

    Raises:
        SettingError: there is neither, or it cannot be reached.
    """
    system, path = system_of(url, setting)
    try:
        if system.isfile(path):
            return None
        found = sorted(system.find(path)) if system.isdir(path) else None
    except Exception as error:  # each file system has errors of its own
        raise unreachable(url, error, setting) from None
    if found is None:
        raise SettingError(f"{setting}: there is no file or folder {url!r}")
    inner = ((one, PurePosixPath(one[len(path) :]).parts) for one in found)
    shown = [one for one, parts in inner if not any(part.startswith(".") for part in parts)]
    return [Remote(system.unstrip_protocol(one), setting) for one in shown]


def system_of(url: str, setting: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        SettingError: no installed library reads it.
    """
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        raise SettingError(
            f"{setting}: {url}: URLs need an extra: pip install 'culm[remote]' ({error})"
        ) from None
    except Exception as error:  # each file system has errors of its own
        raise unreachable(url, error, setting) from None


def unreachable(url: str, error: Exception, setting: str) -> Unreachable:
    """The error for a URL that is not read, for whatever reason."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, FileNotFoundError) and why in url:  # some say the name only
        why = "there is no such file"
    return Unreachable(
        f"{setting}: {url}: cannot be read: {why}; check the URL, the network and your access to it"
    )
