"""The record of how a run made its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from culm.convert.load import find_model
from culm.data.manifest import NAME, Manifest
from culm.files import sha256
from culm.lineage import Content, CorpusRecord, Lineage, lineage_of, write_lineage
from culm.run.assemble import Assembly, prepared_folder
from culm.run.start import model_id
from culm.source.source import local_files


def write_run_lineage(run: Assembly, model: Path) -> None:
    """Write the record of a model that a run just wrote."""
    config = run.config
    streamed = config.data.stream is not None
    streams = []
    if streamed:  # a digest of all its text would take as long as reading it
        source = config.data.open(config.seed)
        streams = [Content(path=str(file)) for file in local_files(source)]
    write_lineage(
        model,
        ["train"],
        settings=config.model_dump(mode="json"),
        corpora=() if streamed else tuple(_corpora(run)),
        streams=tuple(streams or [Content(path=path) for path in config.data.path if streamed]),
        models=dict(_models(run)),
        ranks=run.ranks.processes,
    )


def _corpora(run: Assembly) -> Iterator[CorpusRecord]:
    config = run.config
    if config.train.objective.reads == "rollouts":
        return
    own = prepared_folder(config, run.tokenizer, run.folder)
    mixed = [one.corpus for one in config.data.mix if one.corpus is not None]
    folders = [own, *(folder for folder in mixed if folder != own)]
    for folder in folders:
        manifest = Manifest.read(folder)
        yield CorpusRecord(
            path=str(folder),
            manifest=sha256(folder / NAME),
            origin=tuple(
                Content(path=path, sha256=file.sha256) for path, file in manifest.origin.items()
            ),
            cleaning=tuple(str(stage.settings["kind"]) for stage in manifest.clean),
            prepare=manifest.prepare,
        )


def _models(run: Assembly) -> Iterator[tuple[str, Lineage | Content]]:
    """Each model that the run read, by its setting."""
    if run.config.start is not None:
        name = model_id(run.config.start)
        yield "start", _known(name, run.base)
    for setting, digest in run.load.digests.items():
        name, _, path = setting.partition("=")
        yield name, _known(path, digest)


def _known(path: str, digest: str | None) -> Lineage | Content:
    found = find_model(path)
    known = lineage_of(found, path) if found.exists() else None
    return known if isinstance(known, Lineage) else Content(path=path, sha256=digest)
