"""Models of patches on two processes, each with a copy."""

from pathlib import Path

import pytest
import yaml
from bytes_runs import patches, settings
from test_ranks import assert_same, on_two_ranks

from culm.run.train import train
from culm.train.run_folder import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KINDS = ("megabyte", "spacebyte", "hnet", "blt")


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    train(settings(tmp_path / "small", {}))
    files = []
    for kind in KINDS:
        train(settings(tmp_path / kind, patches(kind, tmp_path / "small")))
        own = yaml.safe_load((tmp_path / kind / SETTINGS).read_text())
        files.append(tmp_path / f"{kind}-two.yaml")
        more = {"folder": str(files[-1].with_suffix("")), "parallel": {"data": "ddp"}}
        files[-1].write_text(yaml.safe_dump({**own, **more}))
    on_two_ranks(*map(str, files))
    for kind, file in zip(KINDS, files, strict=True):
        assert_same(tmp_path / kind, file.with_suffix(""))
