"""Words of messages, help texts, docstrings and pages: the list of CONTRIBUTING.md is kept."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTS = {"log.md", "results.md"}  # records of what was written at the time
PAGES = [
    page
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if page.name not in LISTS
]
# Other packages follow; remove the line of one when its words are done.
PENDING = ()
MODULES = sorted((ROOT / "culm").rglob("*.py"))


def table() -> list[tuple[list[str], list[str]]]:
    """Rows of CONTRIBUTING.md: words that are not used, and phrases in which they may stand."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text[text.index("| write | not | except |") :].splitlines()[2:]
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [(re.findall("`([^`]+)`", banned), re.findall("`([^`]+)`", allowed))
            for _, banned, allowed in rows]  # fmt: skip


def phrase(words: list[str]) -> str:
    """A pattern for any of these, over line ends too."""
    return "|".join(rf"\b{re.escape(word)}\b".replace(r"\ ", r"\s+") for word in words)


BANNED = [
    (re.compile(phrase(words), re.I), re.compile(phrase(allowed) or r"(?!)", re.I))
    for words, allowed in table()
]


def found(text: str) -> list[str]:
    """Each banned phrase of a text with some of its surroundings."""
    hits = []
    for banned, allowed in BANNED:
        rest = allowed.sub("", text)
        for hit in banned.finditer(rest):
            near = rest[max(0, hit.start() - 40) : hit.end() + 40]
            hits.append(f"{hit[0]!r} in {' '.join(near.split())!r}")
    return hits


def strings(module: Path) -> Iterator[str]:
    """Every text of a module that a person may read: strings with a space, docstrings included."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        match node:
            case ast.Constant(value=str(text)) if " " in text.strip():
                yield text


def prose(page: Path) -> str:
    """A page without its code and without the list itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return text.split("| write | not | except |")[0]


def params(paths: list[Path]) -> list:
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    later = pytest.mark.skip(reason="its words are still to be done")
    return [
        pytest.param(path, id=name, marks=later if name.startswith(PENDING) else ())
        for path, name in zip(paths, names, strict=True)
    ]


@pytest.mark.parametrize("module", params(MODULES))
def test_a_module_uses_the_words_of_the_list(module: Path) -> None:
    assert [hit for text in strings(module) for hit in found(text)] == []


@pytest.mark.parametrize("page", params(PAGES))
def test_a_page_uses_the_words_of_the_list(page: Path) -> None:
    assert found(prose(page)) == []


def test_the_list_finds_what_it_names() -> None:
    assert len(BANNED) >= 30
    assert all(words for words, _ in table())
    for words, _ in table():
        for word in words:
            assert found(f"It is {word.upper()} here."), word
    assert found("two\n    products") == ["'products' in 'two products'"]
    assert not found("dot products, productsize, and apart\nfrom it")
    assert found("dot products and products")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_no_name_stands_in_braces_in_a_message(module: Path) -> None:
    """A part of an f-string that lacks its own f."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    known = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                names = re.findall(r"\{([A-Za-z]\w+)\}", str(part.value))
                assert not [name for name in names if name.isupper() and name in known], module
