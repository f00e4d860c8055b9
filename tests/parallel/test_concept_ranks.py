"""A sentence autoencoder and networks over its concepts, on two processes in both layouts."""

from functools import partial
from pathlib import Path

import pytest
import yaml
from concept_stages import autoencoder_in, lcm, start, write_texts
from test_ranks import assert_same, on_two_ranks

from culm.train.run_folder import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = ("ae", "base", "one_tower", "two_tower", "quantized")


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    write_texts(tmp_path)
    autoencoder_in(tmp_path, steps=4, **{"model.noise": 0.0})
    for name in NAMES[1:]:
        lcm(partial(start, tmp_path), tmp_path / name, tmp_path / "ae", name)
    files = []
    for name in NAMES:
        settings = yaml.safe_load((tmp_path / name / SETTINGS).read_text())
        for layout in ("ddp", "fsdp"):
            file = tmp_path / f"{name}-{layout}.yaml"
            more = {"folder": str(file.with_suffix("")), "parallel": {"data": layout}}
            file.write_text(yaml.safe_dump({**settings, **more}))
            files.append(file)
    on_two_ranks(*map(str, files))
    for file in files:
        name = file.stem.rpartition("-")[0]
        assert_same(tmp_path / name, file.with_suffix(""))
