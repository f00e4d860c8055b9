"""docs/objectives: code as in the source, settings that parse, metrics that runs write."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from culm.objective import Objective, grpo
from culm.run.settings import RunConfig, read_run

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "objectives").glob("*.md"))
TEACHER = "train.objective.teacher=runs/large"
AUTOENCODER = "train.objective.autoencoder=runs/concept-autoencoder"
# The runs of a page: a setting is one of the first that takes it.
RUNS = {
    "next_token": [["sft", "data.tasks=[]", "data.path=x.jsonl"], ["pretrain"]],
    "masked_diffusion": [["diffusion"], ["diffusion", "model=null"]],
    "reward": [["reward", "data.path=x.jsonl"]],
    "preference": [["dpo", "data.path=x.jsonl"], ["kto", "data.path=x.jsonl"]],
    "ppo": [["ppo"], ["grpo"]],
    "grpo": [["grpo"]],
    "distill": [["distill", "data.path=x.txt", TEACHER], ["distill", TEACHER]],
    "lcm": [["lcm"], ["lcm", AUTOENCODER], ["concept-autoencoder"]],
    "coconut": [["coconut"]],
}
SHOWN = runpy.run_path(str(ROOT / "docs" / "source_links.py"))
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def settings_of(text: str) -> list[str]:
    """The settings of a piece of code in a sentence, which are divided by spaces."""
    if not re.match(r"(train|data|model)(\.\w+)*=", text):
        return []
    return re.split(r"\s(?=[\w.]+=)", text)


def pieces(page: Path) -> list[str]:
    """All code within sentences and tables."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def read(page: Path, settings: list[str]) -> RunConfig:
    errors, names = [], {one.split("=")[0] for one in settings}
    for verb, *usual in RUNS[page.stem]:
        given = [one for one in usual if one.split("=")[0] not in names]
        try:
            return read_run(verb, [*given, *settings])[0]
        except ValueError as error:
            errors.append(str(error))
    raise AssertionError("\n".join(errors))


def test_every_objective_has_a_page_that_shows_its_code() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    union, *_ = get_args(Objective)
    modules = {one.__module__ for one in get_args(union)}
    assert len(modules) >= 8
    for module in modules:
        assert re.search(rf"^\[`{re.escape(module)}\.", text, re.M), module


@PAGE
def test_the_page_shows_code_from_the_source(page: Path) -> None:
    text = SHOWN["shown"](page.read_text(encoding="utf-8"))
    blocks = re.findall(r'^```python title="(.+?)"\n(.*?)^```', text, re.M | re.S)
    assert blocks
    assert "](../../" not in text
    assert sum(code.count("\n") for _, code in blocks) <= 150  # to read on a page
    for path, code in blocks:
        ast.parse(code)
        assert code.splitlines()[0] in (ROOT / path).read_text(encoding="utf-8")


def test_code_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"culm\.objective\.kto\.gone: a page shows its code"):
        SHOWN["shown"]("[`culm.objective.kto.gone`](../../culm/objective/kto.py)")


@PAGE
def test_its_settings_parse(page: Path) -> None:
    found = [given for piece in pieces(page) if (given := settings_of(piece))]
    assert len(found) >= 6
    for given in found:
        read(page, given)


def variants() -> Iterator[tuple[str, str]]:
    page = (ROOT / "docs" / "objectives" / "grpo.md").read_text(encoding="utf-8")
    yield from re.findall(r"`(train.objective.variant=\S+)` \|(?: `(.+?)`)? \|", page)


def test_a_variant_of_grpo_is_what_its_row_says() -> None:
    assert {name for name, _ in variants()} == {
        f"train.objective.variant={v}" for v in grpo.VARIANTS
    }
    for name, settings in variants():
        variant = read_run("grpo", [name])[0].train
        single = read_run("grpo", settings_of(settings))[0].train
        assert variant.rollouts == single.rollouts
        differ = {k for k, v in variant.objective if v != getattr(single.objective, k)}
        assert differ <= {"variant"}, (name, differ)


@PAGE
def test_its_metrics_are_written_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    table = text[text.index("| in `metrics.jsonl`") :].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    source = "".join(
        path.read_text() for part in ("objective", "rollout", "train", "concept")
        for path in (ROOT / "culm" / part).glob("*.py")
    )  # fmt: skip
    assert len(names) >= 4
    for name in names:
        assert f'"{name}"' in source, name
