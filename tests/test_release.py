"""What is released: the version everywhere, the guide for assistants, and the wheel itself."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version() -> None:
    """The required fields of the Citation File Format 1.2.0, and their forms."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    known = {"cff-version", "message", "type", "title", "version", "license", "authors",
             "keywords", "date-released", "repository-code", "url", "doi", "abstract"}  # fmt: skip
    assert cited.keys() <= known
    assert cited["type"] in ("software", "dataset")
    for author in cited["authors"]:
        assert author.keys() & {"name", "family-names", "alias"}
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert set(cited["keywords"]) == set(PROJECT["keywords"])


def test_the_page_on_versions_is_true() -> None:
    page = (ROOT / "docs" / "reference" / "versions.md").read_text()
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"`make ([\w-]+)`", page):
        assert target in rules
    assert f"`v{PROJECT['version']}`" in page
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (Unreleased|\d+\.\d+\.\d+)", changes, re.M)


def test_references_are_installed_where_tests_compare_with_them() -> None:
    """Otherwise the tests are skipped everywhere. What is small comes with `make test`, the rest
    with `make test-slow`.
    """
    extras = PROJECT["optional-dependencies"]
    [dev] = extras["dev"]
    assert "hyperbolic" in re.split(r"[\[\],]", dev)
    [slow] = re.findall(r"^EXTRAS +\?= (.*)", (ROOT / "Makefile").read_text(), re.M)
    assert {name for name in extras if name.endswith("-ref")} <= set(slow.split(","))


def test_the_commands_of_the_guide() -> None:
    """Those of culm are parsed by tests/test_docs.py; the others name what there is."""
    text = (ROOT / "AGENTS.md").read_text()
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    assert len(lines) > 8
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    ran = set()
    for line in lines:
        program, *words = [word for word in shlex.split(line) if "=" not in word]
        name = program.removeprefix(".venv/bin/")
        if name == "make":
            assert words[0] in rules
        elif name == "python":
            assert words[:2] == ["-m", "pytest"]
            assert all((ROOT / place).exists() for place in words[2:])
        else:
            assert shutil.which(name, path=f"{Path(sys.executable).parent}") or name == "culm"
        ran.add(name)
    assert ran == {"make", "culm", "python", "ruff", "lint-imports"}
    for place in re.findall(r"`((?:culm|docs|tests)/[\w/.]+)`", text):
        assert (ROOT / place).exists(), place


PLAN = pytest.param("plan pretrain model=tiny train.steps=20", marks=pytest.mark.slow)


@pytest.mark.parametrize("line", [PLAN, "schema", "doctor"])
def test_the_quick_commands_of_the_guide_run(line: str, tmp_path: Path) -> None:
    assert f"culm {line}" in (ROOT / "AGENTS.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "culm", *shlex.split(line)], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


# -- the wheel ------------------------------------------------------------------------------------


def run(*line: str | Path, **more: object) -> str:
    done = subprocess.run(
        [str(word) for word in line], capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and source archive, from a copy without what git ignores."""
    folder = tmp_path_factory.mktemp("dist")
    tools = folder / "tools"
    venv.create(tools, with_pip=True)
    python = tools / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "hatchling>=1.27"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"hatchling cannot be installed: {done.stderr[-200:]}")
    source = folder / "source"
    names = (*PROJECT["license-files"], PROJECT["readme"], "pyproject.toml", "CITATION.cff",
             "AGENTS.md", "CHANGELOG.md", "mkdocs.yml", "Makefile")  # fmt: skip
    source.mkdir()
    for name in names:
        shutil.copy(ROOT / name, source)
    left_out = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("culm", "docs", "deploy", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    run(python, "-m", "hatchling", "build", "--directory", folder / "dist", cwd=source)
    return folder / "dist"


@pytest.mark.slow
def test_wheel_and_archive_have_all_files(built: Path) -> None:
    [wheel], [archive] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
    package = [
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "culm").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert set(package) <= inside
    for needed in ("configs/run/pretrain.yaml", "serve/http/page/page.html", "vectors.h"):
        found = [name for name in inside if name.startswith("culm/") and name.endswith(needed)]
        assert found or not list((ROOT / "culm").rglob(Path(needed).name)), needed
    assert not [name for name in inside if not name.startswith(("culm/", "culm-"))]
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for name in ("docs/index.md", "deploy/docker/Dockerfile", "CITATION.cff", "AGENTS.md"):
        assert name in names
    assert set(package) <= names


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"])
def installed(built: Path, request, tmp_path_factory) -> Path:
    """An environment with Culm from the file, and other packages of this one, to save time."""
    place = tmp_path_factory.mktemp("clean")
    venv.create(place, with_pip=True)
    [file] = built.glob(request.param)
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
    run(*pip, file, cwd=place)
    [site] = place.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return place


@pytest.mark.slow
def test_it_plans_and_trains_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    """The entry point and the default command of the image too."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    culm, python = installed / "bin" / "culm", installed / "bin" / "python"

    def says(*line: str | Path) -> str:
        return run(*line, cwd=tmp_path, env=clean)

    assert str(installed) in says(python, "-c", "import culm; print(culm.__file__)")
    assert PROJECT["version"] in says(culm, "doctor")
    chance = "abcdefghij"
    lines = [" ".join(f"{a}{b}{n}" for b in chance) for n, a in enumerate(chance * 4)]
    (tmp_path / "books.txt").write_text("\n\n".join(lines))
    small = [
        "data.path=books.txt", "data.split=paragraphs", "tokenizer=bytes", "model=tiny",
        "model.width=32", "model.layers=1", "model.context=64", "model.attention.heads=2",
        "train.steps=2", "train.batch_size=2", "train.micro_batch_size=2", "eval={measures: {}}",
        "folder=run",
    ]  # fmt: skip
    assert "No problem found" in says(culm, "plan", "pretrain", *small)
    says(culm, "train", "pretrain", *small)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert (
        "vllm serve"
        in says(culm, "export", "run", "out", "--for", "vllm")
        + (tmp_path / "out" / "README.md").read_text()
    )
