"""docs/reference/settings.md is what docs/settings_page.py writes, and misses nothing."""

import importlib
import inspect
import pkgutil
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import culm
from culm.config import Config, SettingError

FILES = {
    "Manifest",
    "SourceFile",
    "SplitFacts",
    "File",
    "Folder",
    "StageFacts",
    "Reason",
    "Lineage",
    "Content",
    "CorpusRecord",
}  # what the program writes itself
BASES = {
    "TrunkConfig",
    "GroupedQuery",
    "WidthRule",
    "Distillation",
}  # of classes that are on the page
FILES_OF = ("culm.serve.", "culm.agent.")  # whose settings other pages describe


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return runpy.run_path(str(root / "docs" / "settings_page.py"))["page"]()


def settings_classes() -> Iterator[type[Config]]:
    """Every class of settings in the package that can be built."""
    for module in pkgutil.walk_packages(culm.__path__, "culm."):
        try:
            importlib.import_module(module.name)
        except SettingError as error:  # an adapter for a library that is not installed
            if "it needs an extra" not in str(error):
                raise
    known: list[type[Config]] = [Config]
    for kind in known:
        known += [k for k in kind.__subclasses__() if k not in known]
    for kind in known[1:]:
        ours = kind.__module__.startswith("culm.") and not kind.__module__.startswith(FILES_OF)
        if ours and not inspect.isabstract(kind) and kind.__name__ not in FILES | BASES:
            yield kind


def test_the_page_is_up_to_date(page: str, root: Path, pytestconfig: pytest.Config) -> None:
    path = root / "docs" / "reference" / "settings.md"
    if pytestconfig.getoption("--write-tables"):
        path.write_text(page, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page, "run python docs/settings_page.py"


def test_no_class_and_no_setting_is_missing(page: str) -> None:
    """Found by another way than the page: all subclasses, not those that a run leads to."""
    sections = re.split(r"^##+ ", page, flags=re.MULTILINE)
    kinds = list(settings_classes())
    assert len(kinds) > 60
    for kind in kinds:
        name = f"`{kind.__module__}.{kind.__name__}`"
        [section] = [part for part in sections if f"\n{name}\n" in part]
        rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        assert rows == [field for field in kind.model_fields if field != "kind"], name


def test_every_setting_of_a_docstring_has_its_meaning(page: str) -> None:
    for kind in settings_classes():
        section = page.split(f"\n`{kind.__module__}.{kind.__name__}`\n")[1].split("\n## ")[0]
        section = section.split("\n### ")[0]
        for field in kind.model_fields:
            if re.search(rf"(^|[.;] |\n\s*){field}(, \w+)*: ", kind.__doc__ or ""):
                row = next(line for line in section.split("\n") if line.startswith(f"| `{field}`"))
                assert not row.endswith("|  |"), (kind.__name__, field)


def test_links_lead_to_headings(page: str) -> None:
    headings = re.findall(r"^##+ (.*)$", page, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert len(set(anchors)) == len(anchors)
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert links
    assert links <= set(anchors)
