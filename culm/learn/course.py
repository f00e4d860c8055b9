"""The lessons: files `NN_topic.py` in percent format, NN the part, and a letter if it has several.

A cell starts with `# %%`, one of text with `# %% [markdown]`. The first heading is the title. The
names of exercises are read from the code, so that nothing is listed twice.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from culm.config import SettingError, did_you_mean
from culm.files import read_json

PYTHON_CELLS = ("%%time", "%%timeit", "%%capture", "%%prun")  # what follows is Python
COMMAND = re.compile(r"\s*[%!?]|.*[\w)]\?{1,2}\s*$")  # such as %time, !ls, ?help or help?
LESSONS = Path(__file__).parent / "lessons"
PARTS = {
    "1": "The core of a transformer",
    "2": "A tiny language model",
    "3": "Modern parts",
    "4": "Scaling up",
    "5": "Mixture of experts",
    "6": "Supervised fine-tuning",
    "7": "Reward models",
    "8": "Proximal policy optimisation",
    "9": "Groups, verifiable rewards and preferences",
    "10": "Semantic processing",
    "11": "Ship it",
    "12": "Your own assistant",
}


@dataclass(frozen=True)
class Lesson:
    """path: its file, named `03a_parts.py`."""

    path: Path

    @property
    def number(self) -> str:
        """`3a`."""
        return self.path.stem.split("_")[0].lstrip("0")

    @property
    def part(self) -> str:
        """`3`."""
        return self.number.rstrip("abcdefghijklmnopqrstuvwxyz")

    @property
    def topic(self) -> str:
        """`parts`, as the first module of its checks."""
        return self.path.stem.split("_", 1)[1]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        return re.findall(r"^# # (?:Lesson \w+: )?(.*)$", self.text, re.M)[0]

    @property
    def exercises(self) -> list[str]:
        """Their names, in order."""
        return [name for _, name in exercises_in(ast.parse(self.text))]


def lessons() -> list[Lesson]:
    """All, in order."""
    return [Lesson(path) for path in sorted(LESSONS.glob("[0-9]*.py"))]


def some_lessons(name: str) -> list[Lesson]:
    """Those of a part (`3`), or one by its number (`3a`), topic or file name.

    Raises:
        SettingError: there is none.
    """
    every = lessons()
    stem = Path(name).stem
    found = [one for one in every if stem in (one.number, one.topic, one.path.stem)]
    found = found or [one for one in every if one.part == stem]
    if not found:
        known = [name for one in every for name in (one.number, one.topic)]
        raise SettingError(
            f"there is no lesson {name!r}{did_you_mean(name, known)}; `culm learn` lists them"
        )
    return found


def exercises_in(tree: ast.Module) -> list[tuple[ast.FunctionDef, str]]:
    """The functions under `@exercise("name")`, and these names."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(func=ast.Name(id="exercise"), args=[ast.Constant(value=name)]):
                        found.append((node, str(name)))
    return found


def code_of(path: Path) -> str:
    """The code of a script or a notebook, without magic commands.

    Raises:
        SettingError: it is neither or not readable, or there is no such file.
    """
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file; `culm learn NUMBER` copies a lesson")
    if path.suffix not in (".py", ".ipynb"):
        raise SettingError(f"{path}: it ends in neither .py nor .ipynb")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: it is not text in UTF-8: {error}") from None
    if path.suffix == ".py":
        return text
    cells = read_json(path).get("cells")
    if not isinstance(cells, list):
        raise SettingError(f"{path}: it is no notebook, since it has no cells")
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(map(_python, code))


def _python(cell: str) -> str:
    """A cell without commands of IPython; of one that is Python as it is, every line."""
    try:
        ast.parse(cell)
    except SyntaxError:
        first, *rest = cell.lstrip().splitlines()
        if first.startswith("%%"):
            return "\n".join(rest) if first.split()[0] in PYTHON_CELLS else ""
        lines = cell.splitlines()
        return "\n".join("" if COMMAND.match(line) else line for line in lines)
    return cell
