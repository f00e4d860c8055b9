"""Every command that a page shows runs, in the order of the pages, on small files made here.

Runs take two steps of eight rows. What cannot run here stands in `NOT_HERE`, with the reason.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from shown_files import write_all
from test_docs import PAGES, ROOT, commands, own_parts
from test_promises import ROWS

from culm.cli import main
from culm.compose import CONFIGS

# Of a command's words: why it does not run in this test.
NOT_HERE = {
    r"s3://|hf://|https://|HuggingFace\w*/|mistralai/|mistral-|"
    r"--suite (core|math|quick)|--lm-eval": ("it reads from the network, or from files of others"),
    r"^push (?!.*--dry-run)": "it uploads to the hub; tests/ship/test_push_verb.py has a stand-in",
    r"^(serve|route|board|mcp) ": "it runs until it is stopped; tests/serve starts it",
    r"http://": "it asks a server; tests/agent and tests/rollout/test_remote.py start one",
    r"^plan llm-v1$": "it reads a dataset of the hub",
    r"stories15M|cl100k_base|tokenizer\.model|config\.json": "it reads a file of another project",
    r"^(train|launch) (7b|32b|125m|llm-v1)(?!.*(--for|model=nano))|--device mps": (
        "it needs a GPU, or many"
    ),
    r"answers\.jsonl folder": "a model of two steps ends no answer, so there is none to learn from",
    r"ray=auto": "it needs a Ray cluster",
    r"runs/families": "it compares runs of bench/families.py",
}
SMALL = ("train.steps=2", "train.batch_size=8", "device=cpu")
SMALL_MODEL = ("model.width=128", "model.layers=2")
SMALL_STEPS = ("train.context=32", "train.optimizer=adamw")  # of the 2,100 that a budget takes
# Models that a page calls the reader's own: copies of what earlier commands made.
COPIES = {"runs/large": "runs/books", "runs/chat": "runs/books-chat"}
SHORT = {"--minutes": "0.2", "--budget": "10m"}  # options of time


def shown() -> Iterator[tuple[str, list[str]]]:
    """Page and words of each command, once; commands of tutorials' own parts have their test."""
    known = set[str]()
    pages = [(page, arguments) for page in PAGES for arguments in commands(page)]
    promised = [shlex.split(row[1].strip("`")) for row in ROWS]
    pages += [(ROOT / "promises.md", words[1:]) for words in promised if words[0] == "culm"]
    for page, arguments in pages:
        own = page.exists() and own_parts(page) & set(re.findall(r"\w+", " ".join(arguments)))
        if shlex.join(arguments) not in known and not own:
            known.add(shlex.join(arguments))
            yield page.name, arguments


def reason(arguments: list[str]) -> str | None:
    """Why a command does not run here; None if it does."""
    line = " ".join(arguments)
    return next((why for words, why in NOT_HERE.items() if re.search(words, line)), None)


def small(arguments: list[str]) -> list[str]:
    """The command with few steps, little text and little time."""
    words = [
        SHORT.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    if words[0] not in ("train", "launch", "plan"):
        return words
    named = list(takewhile(lambda word: not word.startswith("--"), words))
    added = [*SMALL]
    keys = {re.split(r"[=.]", word)[0] for word in named}
    if "pretrain" in named and not keys & {"model", "start"} and "galore" not in words[-1]:
        added += SMALL_MODEL
    if "pretrain" in named and "data" not in keys:
        added.append("data.path=books/")
    if "--budget" in words:
        added += SMALL_STEPS
    if ("--ranks" in words and words[0] == "plan") or "--for" in words:
        added.remove("train.batch_size=8")  # nothing runs, and ranks may need more rows
    if any(word.startswith("train.profile") for word in named):  # its steps have numbers
        added.remove("train.steps=2")
    if "folder" not in keys and _default_folder(*named[1:2]).exists():  # of an earlier command
        added.append(f"folder=runs/another-{len(list(Path('runs').iterdir()))}")
    given = {word.partition("=")[0] for word in added}
    kept = [
        re.sub(r"\bsteps: \d+", "steps: 2", word)
        for word in named
        if word.partition("=")[0] not in given
    ]
    return [*kept, *added, *words[len(named) :]]


def _default_folder(run: str = "") -> Path:
    path = CONFIGS / "run" / f"{run}.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else {}
    return Path(values.get("folder", f"runs/{run}"))


def redirected(arguments: list[str]) -> tuple[list[str], str, str | None]:
    """The words of the command, the file that it reads, and the file that takes its output."""
    words = list(takewhile(lambda word: word not in ("<", ">"), arguments))
    files = dict(zip(arguments[len(words) :: 2], arguments[len(words) + 1 :: 2], strict=True))
    return words, files.get("<", "question.txt"), files.get(">")


def instead(program: str, words: list[str]) -> None:
    """What would take the place of this process runs beside it."""
    done = subprocess.run(words, capture_output=True, text=True)
    print(done.stderr, file=sys.stderr)
    raise SystemExit(done.returncode)


def copy_models(arguments: list[str]) -> None:
    for copy, original in COPIES.items():
        named = any(re.split("[=]", word)[-1] == copy for word in arguments)
        if named and not Path(copy).exists() and Path(original).exists():
            shutil.copytree(original, copy)


SHOWN = list(shown())
RUN = [pytest.param(words, id=f"{page}: {shlex.join(words)}") for page, words in SHOWN
       if reason(words) is None]  # fmt: skip


def test_each_reason_is_that_of_a_command():
    lines = [" ".join(words) for _, words in SHOWN]
    assert [one for one in NOT_HERE if not any(re.search(one, line) for line in lines)] == []
    assert len(RUN) > 0.7 * len(SHOWN)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    write_all(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUN)
def test_a_shown_command_runs(arguments, workplace, monkeypatch, capsys):
    """Later ones read what earlier ones wrote."""
    monkeypatch.chdir(workplace)
    copy_models(arguments)
    words, given, taken = redirected(arguments)
    monkeypatch.setattr(sys, "argv", ["culm", *small(words)])
    monkeypatch.setattr(os, "execv", instead)
    with open(given) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(SystemExit) as ended:
            main()
    shown = capsys.readouterr()
    if taken is not None:
        Path(taken).write_text(shown.out)
    unsolved = arguments[:2] == ["learn", "check"]  # nobody has written these exercises here
    assert bool(ended.value.code) == unsolved, shown.err
