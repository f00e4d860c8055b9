"""The files that a corpus or tokenizer was made from, and whether they changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from culm.data.source_file import SourceFile, source_file
from culm.files import sha256
from culm.source import Chain, Limited, Mapped
from culm.source.hub import Hub
from culm.source.remote import Remote
from culm.source.source import Source, local_files

SHOWN = 12  # digits of a digest in a message


Origin = dict[str, SourceFile]  # by path


def revisions_of(source: Source) -> dict[str, str]:
    """The version of all that a source reads elsewhere: the revision of a dataset on the hub, where
    the hub says it, and what the file system says of a file with a URL.
    """
    match source:
        case Hub():
            return {source.name: source.revision} if source.revision else {}
        case Chain():
            return {name: one for s in source.sources for name, one in revisions_of(s).items()}
        case Limited() | Mapped():
            return revisions_of(source.source)
    return {str(file): file.version for file in source.files if isinstance(file, Remote)}


def origin_of(source: Source) -> Origin:
    """Every file of a source as it is now; each is read once."""
    return {str(path): source_file(path) for path in local_files(source)}


def change_in(origin: Mapping[str, SourceFile], source: Source) -> str | None:
    """The first change in the files of a source, as the second half of a sentence."""
    paths = {str(path): path for path in local_files(source)}
    for name in [*paths, *origin]:
        if name not in origin:
            return f"{name} was not there then"
        if name not in paths:
            return f"{name} was there then and is gone"
        if (change := _change(name, origin[name])) is not None:
            return change
    return None


def changes_since(origin: Mapping[str, SourceFile]) -> list[str]:
    """How files differ from what they were, each as half a sentence; those that are gone do not."""
    changes = (_change(name, was) for name, was in origin.items() if Path(name).is_file())
    return [change for change in changes if change is not None]


def _change(name: str, was: SourceFile) -> str | None:
    """A file of the same size and time is taken to be the same; its digest decides otherwise."""
    now = Path(name).stat()
    if (now.st_size, now.st_mtime_ns) == (was.bytes, was.modified):
        return None
    if now.st_size != was.bytes:
        return f"{name} had {was.bytes:,} bytes then and has {now.st_size:,} now"
    if (digest := sha256(Path(name))) != was.sha256:
        digests = f"SHA-256 {was.sha256[:SHOWN]} then, {digest[:SHOWN]} now"
        return f"{name} has other contents ({digests})"
    return None
