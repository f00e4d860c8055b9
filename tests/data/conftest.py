"""What tests of data share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from culm.data.example import RecordFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.source import open_source
from culm.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., tuple[Manifest, list[str]]]:
    """A file of lines, prepared: its manifest, and the texts of its documents."""

    def work(lines: list[Any], format: RecordFormat, **options: Any) -> tuple[Manifest, list[str]]:
        made = len(list(tmp_path.glob("data*")))
        path, folder = tmp_path / "records.jsonl", tmp_path / f"data{made}"
        path.write_text(
            "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        )
        source = open_source(path, invalid=options.get("invalid", "error"))
        manifest = prepare(source, format, tokenizer, folder, held_out=0, **options)
        opened = Prepared.open(folder)
        ends = zip(opened.offsets, opened.offsets[1:], strict=False)
        documents = [opened.read(start, end) for start, end in ends]
        return manifest, [tokenizer.decode(ids.tolist(), specials=True) for ids, _ in documents]

    return work
