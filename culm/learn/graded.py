"""Check the exercises of a file without running its experiments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.learn.course import code_of, exercises_in
from culm.learn.exercise import Verdict, find, judge

DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip
ASSIGNED = (ast.Assign, ast.AnnAssign)
RUNS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)  # what a constant has none of


def graded(path: Path) -> list[Verdict]:
    """A verdict for each exercise of a script or notebook, in order.

    Only imports, functions, classes and values that are computed without a call are run; one of
    these that needs what is not run is left out. As in the lesson, a function that is not right is
    replaced by the library's, so that one mistake does not fail what is built on it.

    Raises:
        SettingError: the code is not valid Python, or has no exercises.
    """
    try:
        tree = ast.parse(code_of(path))
    except SyntaxError as error:
        raise SettingError(f"{path}: line {error.lineno}: {error.msg}") from None
    names = dict(exercises_in(tree))
    if not names:
        raise SettingError(f"{path}: it has no exercises; they stand under @exercise(...)")
    # A name of a module that is loaded: `@dataclass` asks for it.
    known: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    verdicts = []
    for node in tree.body:
        if not _is_definition(node):
            continue
        written = node if isinstance(node, ast.FunctionDef) and node in names else None
        if written is not None:
            written.decorator_list = []
        try:
            exec(compile(ast.Module([node], []), str(path), "exec"), known)
        except (Exception, SystemExit) as error:
            if written is None and (isinstance(node, ASSIGNED) or isinstance(error, NameError)):
                continue
            raise SettingError(
                f"{path}: line {node.lineno}: {type(error).__name__}: {error}"
            ) from error
        if written is not None:
            exercise = find(names[written])
            verdicts.append(judge(exercise, known[written.name]))
            if verdicts[-1].state != "right":
                known[written.name] = exercise.solution
    return verdicts


def _is_definition(node: ast.stmt) -> bool:
    """Whether a statement trains and prints nothing: a name for later."""
    if isinstance(node, ASSIGNED):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        # An attribute or an item may be of the library.
        named = all(isinstance(one, ast.Name | ast.Tuple) for one in targets)
        return named and not any(isinstance(one, RUNS) for one in _outside_functions(node))
    return isinstance(node, DEFINITIONS)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, but not the body of a lambda, which runs later."""
    yield node
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, ast.Lambda):
            yield from _outside_functions(inner)
