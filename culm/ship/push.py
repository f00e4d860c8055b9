"""`culm push`: a finished model as a version on the Hugging Face hub.

Only files that make up a model are uploaded, by name: no data, no checkpoints, no logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from culm import hub
from culm.config import SettingError
from culm.convert.card import NAME as CARD
from culm.convert.load import HUB_ID, find_model
from culm.files import json_text, read_json
from culm.lineage import NAME as LINEAGE
from culm.lineage import read_lineage
from culm.log import say
from culm.ship.card import hub_card
from culm.ship.made import public

WEIGHTS = ("*.safetensors", "*.gguf")
FILES = (
    *WEIGHTS, "*.safetensors.index.json", "config.json", "model.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer_vectors.json", "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "adapter_config.json", "Modelfile", "compile.py",
)  # fmt: skip
KINDS = ("model.json", "config.json", "adapter_config.json", "Modelfile")  # one marks a model
VERSION = re.compile(r"v(\d+)")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Upload:
    """files: paths by their names in the repository. written: texts by theirs, of this push. left:
    names in the model's folder that are not uploaded.
    """

    repo: str
    version: str
    files: Mapping[str, Path]
    written: Mapping[str, str]
    left: Sequence[str]


def prepare(
    model: str, repo: str, version: str | None, licence: str | None, results: Sequence[str]
) -> Upload:
    """What a push would upload; asks no network unless `version` is None.

    version: the name of its tag; None: v1, or one more than the newest of the repository.

    Raises:
        SettingError: there is no model, or the hub takes no such name or tag.
    """
    if not HUB_ID.fullmatch(repo):
        raise SettingError(f"{repo}: not the name of a repository; give OWNER/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError(f"{repo}: not the name of a repository: {error}") from None
    if version is not None and not _is_tag(version):
        raise SettingError(
            f"--tag: {version!r}; use letters, digits, -, _ and single dots, and not main"
        )
    place = find_model(model)
    files = _files(place)
    if not files.keys() & {*KINDS, *_gguf(place)} or not any(map(_is_weights, files)):
        raise SettingError(f"{place}: there is no finished model; give a run or model folder")
    made = read_lineage(place)
    readme = place / CARD if place.is_dir() else None
    text = readme.read_text(encoding="utf-8-sig") if readme and readme.is_file() else ""
    version = version or "v1"
    found = _results(place, results)
    written = {CARD: hub_card(text, repo, found, made, licence, version)}
    if made is not None:
        written[LINEAGE] = json_text(public(made), indent=2) + "\n"
    there = {str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()}
    left = sorted(there - files.keys() - {CARD, LINEAGE}) if place.is_dir() else []
    return Upload(repo, version, files, written, left)


def _is_tag(version: str) -> bool:
    """Whether Git takes the name: it is too late to ask when the files are uploaded."""
    plain = TAG.fullmatch(version) and ".." not in version
    return bool(plain) and not version.endswith((".", ".lock")) and version not in ("main", "HEAD")


def _gguf(place: Path) -> list[str]:
    return [place.name] if place.is_file() and place.suffix.lower() == ".gguf" else []


def _is_weights(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, one) for one in WEIGHTS)


def _files(place: Path) -> dict[str, Path]:
    """What makes up the model, and lies directly in its folder."""
    if place.is_file():
        return dict.fromkeys(_gguf(place), place)
    found = {f.relative_to(place).as_posix(): f for f in sorted(place.rglob("*")) if f.is_file()}
    return {
        name: file
        for name, file in found.items()
        if any(fnmatch(name, one) and one.count("/") == name.count("/") for one in FILES)
    }


def _results(place: Path, given: Sequence[str]) -> dict[str, Any]:
    """Results of files that are named, or of the run whose model this is."""
    own = place.parent / "results.json"
    paths = [Path(one) for one in given] or ([own] if own.is_file() else [])
    found: dict[str, Any] = {}
    for path in paths:
        for name, value in read_json(path).items():
            known = found.get(name)
            if isinstance(known, Mapping) and isinstance(value, Mapping):
                value = {**known, **value}  # scores of two suites
            found[name] = value
    return found


def push(
    model: str,
    repo: str,
    version: str | None,
    licence: str | None,
    results: Sequence[str],
    public: bool,
) -> str:
    """Upload a version; gives the address of the commit. public: a new repository is.

    Raises:
        SettingError: there is no token, the version exists, or the hub refuses.
    """
    first = "v1" if version is None else version
    prepare(model, repo, first, licence, results)  # whatever is wrong here comes first
    if not get_token():
        raise SettingError(
            "no token of the Hugging Face hub: run `hf auth login` with one that may write, or set "
            "HF_TOKEN"
        )
    api, half = HfApi(), ""
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        tags = [ref.name for ref in api.list_repo_refs(repo).tags]
        upload = prepare(model, repo, _free(version, tags, repo), licence, results)
        commit = api.create_commit(
            repo, _operations(upload, api.list_repo_files(repo)),
            commit_message=f"Version {upload.version}",
        )  # fmt: skip
        half = f"the files of version {upload.version} are there, but not its tag: "
        api.create_tag(repo, tag=upload.version, revision=commit.oid)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise SettingError(
                f"{repo}: {half}the token is not valid, or may not write there; run `hf auth login`"
            ) from None
        raise SettingError(f"{repo}: {half}{hub.reason(error, 'model')}") from None
    except (HTTPError, OSError) as error:
        raise SettingError(f"{repo}: {half}the hub is not reachable: {error}") from None
    say(f"Pushed {repo}, version {upload.version}.")
    return str(commit.commit_url)


def _free(version: str | None, tags: Sequence[str], repo: str) -> str:
    if version in tags:
        raise SettingError(f"--tag: {repo} has a version {version!r} already; choose another")
    numbers = [int(found[1]) for tag in tags if (found := VERSION.fullmatch(tag))]
    return version or f"v{max(numbers, default=0) + 1}"


def _operations(upload: Upload, there: Sequence[str]) -> list[Any]:
    """Adds all files, and removes weights of an earlier version that have other names."""
    texts = {name: text.encode() for name, text in upload.written.items()}
    added: dict[str, Path | bytes] = {**upload.files, **texts}
    old = [name for name in there if name not in added and _is_weights(name)]
    return [
        *(CommitOperationAdd(path_in_repo=n, path_or_fileobj=one) for n, one in added.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in old),
    ]
