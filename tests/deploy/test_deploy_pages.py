"""The pages on containers and clusters: what their lines name is there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from culm.verbs.any_run import read_any_run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "recipes" / f"{name}.md" for name in ("docker", "kubernetes")]
WRITTEN = {"deploy/docker/api_key"}  # by a line of the page


def lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```(?:text|bash)\n(.*?)^```", page.read_text(), re.M | re.S)
    return "".join(blocks).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_of_the_lines_exist(page: Path) -> None:
    found = {place.rstrip("./") for place in re.findall(r"deploy/[\w./-]+", "\n".join(lines(page)))}
    found = {re.sub(r"^deploy\.ray.*", "", place) for place in found} - WRITTEN
    assert len(found) >= 2
    assert [place for place in found if not (ROOT / place).exists()] == []


def test_the_files_of_the_tables_exist() -> None:
    text = PAGES[1].read_text()
    folder = ROOT / "deploy" / "kubernetes" / "serve"
    names = re.findall(r"^\| `([\w.]+\.yaml)` \|", text, re.M)
    assert {*names, "kustomization.yaml"} == {file.name for file in folder.iterdir()}
    services = yaml.safe_load(
        re.sub(r"\$\{[^}]*\}", "x", (ROOT / "deploy" / "docker" / "compose.yml").read_text())
    )["services"]
    assert set(re.findall(r"^\| `(\w+)` \|", PAGES[0].read_text(), re.M)) == services.keys()


def test_the_run_in_a_container_is_readable(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    [line] = [line for line in lines(PAGES[0]) if " run --rm train " in line]
    run, *settings = shlex.split(line.partition(" run --rm train ")[2])
    read_any_run(run, settings)


def test_ray_names_a_function_that_there_is() -> None:
    [line] = [line for line in lines(PAGES[1]) if "serve run culm.serve" in line]
    module, function = re.search(r"serve run (\S+):(\w+)", line).groups()  # type: ignore[union-attr]
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {function}(" in text
    given = re.findall(r"(\w+)=\d", line)
    assert set(given) <= set(re.findall(r'"(\w+)": [\d.]+', text))
