"""No module of the package imports in a circle, whatever form its imports have."""

import ast
from pathlib import Path

import pytest


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package below `root`, by its dotted name."""
    found = {}
    for path in (root / "culm").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules that a file names anywhere: at the top, in functions, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & known
            found |= submodules
            if len(submodules) < len(names):
                found.add(node.module)
    return found & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle in order; none if there is no circle."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def graph_of(root: Path) -> dict[str, set[str]]:
    files = modules(root)
    return {name: imports(path, set(files)) - {name} for name, path in files.items()}


def test_there_is_no_import_circle(root: Path) -> None:
    assert circle(graph_of(root)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from culm.b import x",
        "from culm import b",
        "import culm.b",
        "def f():\n    from culm.b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from culm.b import x",
    ],
)
def test_a_circle_of_any_form_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "culm").mkdir()
    (tmp_path / "culm" / "__init__.py").touch()
    (tmp_path / "culm" / "a.py").write_text(f"{line}\n")
    (tmp_path / "culm" / "b.py").write_text("from culm.c import y\n")
    (tmp_path / "culm" / "c.py").touch()
    assert circle(graph_of(tmp_path)) == []
    (tmp_path / "culm" / "c.py").write_text("import culm.a\n")
    assert circle(graph_of(tmp_path)) == ["culm.a", "culm.b", "culm.c", "culm.a"]
