"""Check the exercises of a file without running its experiments."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.learn.course import code_of, exercises_in
from culm.learn.exercise import Verdict, find, judge

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
LITERAL = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.UnaryOp, ast.USub, ast.expr_context)


def graded(path: Path) -> list[Verdict]:
    """A verdict for each exercise of a script or notebook, in order.

    Only imports, functions, classes and constants are run. As in the lesson, a function that is not
    right is replaced by the library's, so that one mistake does not fail what is built on it.

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
        except Exception as error:
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
    """Whether a statement runs nothing: a constant, or a name for later."""
    if isinstance(node, ast.Assign):
        names = all(isinstance(target, ast.Name) for target in node.targets)
        return names and all(isinstance(part, LITERAL) for part in ast.walk(node.value))
    return isinstance(node, DEFINITIONS)
