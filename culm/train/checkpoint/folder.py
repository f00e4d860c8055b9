"""Checkpoints in a run folder: which there are, which of them are good, and which stay.

    checkpoints/step-40/state.json   step, tokens, settings, digests of the data and of the models
                                     that the run reads, SHA-256 of the other files and of itself
    checkpoints/step-40/...          tensors, in one of two forms (`whole`, `sharded`)
    checkpoints/damaged-step-40/     one that was refused, and is not counted any more

A checkpoint is complete or not there; one that was damaged later is refused by its digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from culm import files
from culm.atomic import discard
from culm.log import say
from culm.train.checkpoint.tensors import CheckpointError

FOLDER, STATE = "checkpoints", "state.json"
VERSION = 2  # of what is in a checkpoint
DAMAGED = "damaged"


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what that depends on.

    data: fingerprint of the dataset that its steps index. reads: digests of the models and of the
    tokenizer that the run reads, each by the setting that names it. settings: of the run.
    """

    step: int
    tokens: int
    data: str
    reads: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class Found(NamedTuple):
    """A checkpoint whose `state.json` is readable."""

    path: Path
    progress: Progress
    form: str
    digests: dict[str, str]


class Refused(NamedTuple):
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, in a run folder."""
    return folder / FOLDER / f"step-{step}"


def steps_in(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a run folder, in order."""
    return [step for step in _numbered(folder) if (path_of(folder, step) / STATE).exists()]


def _numbered(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step-") for path in (folder / FOLDER).glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def write_state(path: Path, progress: Progress, form: str, digests: Mapping[str, str]) -> None:
    """Write `state.json` next to the other files of a checkpoint, whose digests it holds."""
    state = {"version": VERSION, "form": form, **asdict(progress), "files": dict(digests)}
    files.write_json(path / STATE, {**state, "sha256": _seal(state)})


def _seal(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> Found | Refused:
    """What `state.json` of a checkpoint says.

    Raises:
        CheckpointError: it may not be read, or is of another version of Culm: no damage.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if isinstance(state, dict) and "step" in state and state.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: written by another version of Culm; continue with that one, or give a "
                "new run another folder=..."
            )
        checksum = state.pop("sha256")
        if _seal(state) != checksum:
            return Refused(path, f"the SHA-256 of {STATE} differs")
        del state["version"]
        form, digests = state.pop("form"), state.pop("files")
        return Found(path, Progress(**state), form, digests)
    except PermissionError as error:
        raise _unreadable(error) from error
    except FileNotFoundError:
        return Refused(path, f"{STATE} is missing")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Refused(path, f"{STATE} does not describe a checkpoint")


def damage_of(found: Found, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, of which each of several ranks reads a share.

    Raises:
        CheckpointError: one of them may not be read, which is no damage.
    """
    for name in sorted(found.digests)[share::shares]:
        try:
            if files.sha256(found.path / name) != found.digests[name]:
                return f"the SHA-256 of {name} differs"
        except PermissionError as error:
            raise _unreadable(error) from error
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _unreadable(error: PermissionError) -> CheckpointError:
    return CheckpointError(f"{error.filename}: may not be read; give this user access")


def candidates(folder: Path) -> Iterator[Found | Refused]:
    """The checkpoints of a run folder, the newest one first."""
    for step in reversed(_numbered(folder)):
        yield read_state(path_of(folder, step))


def verify(folder: Path) -> tuple[Progress | None, list[Refused]]:
    """The progress of the newest good checkpoint, and newer ones that are damaged.

    Raises:
        CheckpointError: all are damaged.
    """
    refused: list[Refused] = []
    for one in candidates(folder):
        if isinstance(one, Found):
            if (reason := damage_of(one)) is None:
                return one.progress, refused
            one = Refused(one.path, reason)
        refused.append(one)
    refuse_all(refused)
    return None, []


def refuse_all(refused: list[Refused]) -> None:
    """Raise if there are checkpoints, and each of them is damaged."""
    if refused:
        reasons = "; ".join(f"{one.path.name}: {one.reason}" for one in refused)
        raise CheckpointError(
            f"{refused[0].path.parent}: every checkpoint is damaged ({reasons}); restore one, "
            "delete the folder to start from the beginning, or give a new run another folder=..."
        )


def set_aside(refused: Refused) -> Path:
    """Rename a damaged checkpoint, so that it is not counted and its step can be saved again."""
    path = refused.path
    places = (
        path.with_name(f"{DAMAGED}-{path.name}{'' if n == 1 else f'-{n}'}") for n in range(1, 10**6)
    )
    place = next(place for place in places if not place.exists())
    path.rename(place)
    return place


def prune(folder: Path, keep: int, keep_every_steps: int | None) -> None:
    """Remove all but the newest `keep` and those of every `keep_every_steps` steps."""
    for step in steps_in(folder)[:-keep]:
        if keep_every_steps is None or step % keep_every_steps:
            path = path_of(folder, step)
            try:
                discard(path)
            except OSError as error:  # the new checkpoint is on the disk all the same
                say(f"{path}: could not be removed ({error.strerror or error}).")


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings in the newest checkpoint, as plain values; none where it has none."""
    for step in reversed(steps_in(folder)):
        try:
            text = (path_of(folder, step) / STATE).read_text(encoding="utf-8")
            settings = json.loads(text)["settings"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if isinstance(settings, dict):
            return settings
    return {}
