"""What the pages say is so: commands parse, quick ones run, examples are read, links lead on."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from typer.main import get_command

from culm.cli import app, main
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.run.settings import read_run
from culm.tokenizer.bytes import Bytes
from culm.verbs.any_run import read_any_run
from culm.verbs.series import members

ROOT = Path(__file__).parents[1]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
QUICK = ("doctor", "schema", "plan", "inspect", "generate", "quantize", "export")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """Every `culm ...` line of a page, as arguments."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\.venv/bin/|torchrun .* -m )?culm(?:\.cli)? (.*)$", text, re.M)
    return [shlex.split(line, comments=True) for line in lines]


def own_parts(page: Path) -> set[str]:
    """Kinds of the parts that a tutorial adds; tests/test_tutorials.py has them."""
    files = re.findall(r"^```python title=.*?\n(.*?)^```", page.read_text(), re.M | re.S)
    return {kind for file in files for kind in re.findall(r'kind: Literal\["(\w+)"\]', file)}


COMMANDS = [
    pytest.param(arguments, own_parts(page), id=f"{page.name}: {' '.join(arguments)}")
    for page in PAGES
    for arguments in commands(page)
]
CHAT = "runs/quickstart/chat"


def test_the_readme_has_its_two_commands():
    first = blocks(ROOT / "README.md", "bash")[0].splitlines()
    assert [line.split(" <")[0] for line in first[:2]] == ["git clone", "cd culm"]
    assert first[2:] == ["make quickstart", f".venv/bin/culm chat {CHAT}"]


@pytest.mark.parametrize(("arguments", "own"), COMMANDS)
def test_commands_parse(arguments, own, monkeypatch, tmp_path):
    name, *rest = arguments
    given = get_command(app).commands[name].make_context(name, rest).params
    if name in ("train", "plan"):
        monkeypatch.chdir(tmp_path)
        if given["run"] == "runs/books.yaml":
            pytest.skip("the file of the example above it")
        words = set(re.findall(r"\w+", " ".join(given["settings"] or [])))
        if words & own:
            pytest.skip("tests/test_tutorials.py has the part that this names")
        read_any_run(given["run"], given["settings"] or [])


def written(arguments):
    """The folder or file that a command writes, if its page names one."""
    name, *rest = arguments
    verb = get_command(app).commands[name]
    if name == "tokenize":
        name, *rest = rest
        verb = verb.commands[name]
    given = verb.make_context(name, list(rest)).params
    if arguments[0] == "train":
        return next((s[7:] for s in given["settings"] or [] if s.startswith("folder=")), None)
    return str(given["out"]) if given.get("out") else None


FOLLOWED = [ROOT / "README.md", *sorted((ROOT / "docs" / "recipes").glob("*.md"))]


def test_each_place_is_written_by_one_command():
    """A reader who follows all pages meets no folder of another command."""
    found = {}
    for page in FOLLOWED:
        for arguments in commands(page):
            if place := written(arguments):
                found.setdefault(place, set()).add(shlex.join(arguments))
    assert len(found) > 30
    assert {place: lines for place, lines in found.items() if len(lines) > 1} == {}


def test_a_run_starts_from_what_another_command_wrote(monkeypatch, tmp_path):
    """Or from a stage of the quickstart, or of a file above it; a recipe's own start is none."""
    monkeypatch.chdir(tmp_path)
    known = {written(arguments) for page in FOLLOWED for arguments in commands(page)}
    for page in FOLLOWED:
        for arguments in commands(page):
            words = set(re.findall(r"\w+", " ".join(arguments)))
            if arguments[0] not in ("train", "plan") or words & own_parts(page):
                continue
            if arguments[1] != "runs/books.yaml":
                settings = takewhile(lambda word: not word.startswith("--"), arguments[2:])
                start = read_run(arguments[1], list(settings))[0].start
                assert start is None or starts_from(start, known), arguments


def starts_from(start, known) -> bool:
    path = start if isinstance(start, str) else start.path
    return path is None or path in known or path.startswith("runs/quickstart/")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a tiny model where the README has its own."""
    folder = tmp_path_factory.mktemp("workplace")
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, attention=(GQA(heads=2),)
    )
    (folder / CHAT).parent.mkdir(parents=True)
    native.save(config.build(seed=0), words, folder / CHAT)
    return folder


def test_the_quick_commands_of_the_readme_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    quick = [arguments for arguments in commands(ROOT / "README.md") if arguments[0] in QUICK]
    assert len(quick) >= 5
    for arguments in quick:
        monkeypatch.setattr(sys, "argv", ["culm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        assert capsys.readouterr().out


def test_the_python_of_the_readme_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_files_that_pages_name_are_there():
    """The lab book names what is gone too, and CONTRIBUTING.md what a reader will add."""
    named = re.compile(r"`((?:culm|tests|bench|deploy)/[\w./-]*)`")
    pages = [page for page in PAGES if page.name not in ("log.md", "CONTRIBUTING.md")]
    found = [(page.name, path) for page in pages for path in named.findall(page.read_text())]
    assert len(found) > 50
    assert [one for one in found if not (ROOT / one[1]).exists()] == []


def test_the_sentences_of_troubleshooting_are_ours():
    source = "".join(path.read_text() for path in (ROOT / "culm").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # literals that go on in the next line
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(quoted) >= 6
    for sentence in quoted:
        for part in sentence.replace("...", "…").split("…"):
            assert part.strip(" .") in source, sentence


def test_each_symptom_has_a_cause_a_check_and_a_fix():
    """The order of an entry is what a reader in trouble looks for."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = page[: page.index("\n## Messages")].split("\n### ")[1:]
    assert len(entries) >= 25
    for entry in entries:
        cause, check, fix = (
            entry.find(part) for part in ("**Cause:**", "```bash\nculm ", "**Fix:**")
        )
        assert 0 < cause < check < fix, entry.splitlines()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_readable_and_links_lead_somewhere(page, tmp_path):
    for text in blocks(page, "yaml"):
        (tmp_path / "run.yaml").write_text(text)
        read_run(str(tmp_path / "run.yaml"))
    for text in blocks(page, "json"):
        json.loads(text)
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="needs culm[docs]")
def test_the_pages_build(tmp_path):
    """In strict mode: a warning, such as a link to a heading that is not there, is an error."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "culm").symlink_to(ROOT / "culm")
    line = [sys.executable, "-m", "zensical", "build", "--strict"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "recipes" / "serve" / "index.html").is_file()
    page = (tmp_path / "site" / "objectives" / "preference" / "index.html").read_text()
    assert "kto_loss" in page  # code from the source
    assert "def" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_the_same_in_zsh(page):
    """There, a word with one of these characters is a pattern that matches no file."""
    for line in "\n".join(blocks(page, "bash")).splitlines():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not re.search(r"[\[\]*?{}#!]|\s[=~]", bare), line


def test_the_sweep_is_nine_runs_and_is_compared(monkeypatch):
    page = ROOT / "docs" / "recipes" / "sweep.md"
    trained, compared, *_ = blocks(page, "bash")
    words = shlex.split(trained)
    swept, seeds = words[words.index("--sweep") + 1], int(words[words.index("--seeds") + 1])
    series = list(members(words[2], words[3:5], seeds, [swept]))
    runs = [read_run(words[2], given)[0] for _, given in series]
    assert {(run.train.optimizer.rate, run.seed) for run in runs} == {
        (rate, seed) for rate in (1e-3, 3e-3, 1e-2) for seed in (0, 1, 2)
    }
    said = page.read_text()
    assert all(f"`{run.folder}`" in said for run in (runs[0], runs[-1]))
    assert str(Path(runs[0].folder).parent) == shlex.split(compared)[2]
