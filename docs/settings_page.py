"""Writes docs/reference/settings.md from the settings classes: `python docs/settings_page.py`."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from culm.adapt.quantize import Method, Quantizers
from culm.config import listed
from culm.graph.settings import GraphRun
from culm.run.settings import RunConfig
from culm.sandbox.limits import Limits
from culm.ship.targets import Target
from culm.verbs.schema import described

PAGE = Path(__file__).parent / "reference" / "settings.md"
HEAD = """\
# Settings

Written by `python docs/settings_page.py` from the settings classes, with their types and defaults.
`culm plan RUN` prints the values of a run with their origins; `culm schema` writes the JSON schema
for editors.

- A part with a `kind` is a mapping, or the kind alone: `train.optimizer=adamw`.
- "or a list" means that one value stands for a list of one.
- `model: {depth: 12}` sets most of a run at once: [configs](../concepts/configs.md#one-dial).
"""
QUANTIZE = """\
## culm quantize

`--to` is one of {to}, or a list; `--method` is one of {method}. See
[quantising](../recipes/quantize.md)."""
EXPORT = """\
## culm export

`--for` is one of {target}. What each takes: [Ollama](../recipes/ollama.md),
[vLLM](../recipes/vllm.md), [serverless hosts](../recipes/serverless.md)."""
GRAPH = """\
## culm train poincare

A run file with `kind: graph` learns points for the nodes of a graph; see
[hyperbolic space](../concepts/hyperbolic.md)."""
NAMES = {int: "integer", float: "number", str: "text", bool: "boolean", Path: "path"}
SIGNS = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}


class Writer:
    """Sections in the order in which the settings lead to them; each class has one."""

    def __init__(self) -> None:
        self.headings: dict[type[BaseModel], str] = {}
        self.parts: list[str] = [HEAD]

    def run(self) -> str:
        self.plan(RunConfig, "run", "")
        self.plan(Quantizers, "to", "to")
        self.plan(Method, "method", "method")
        self.plan(Target, "for", "for")
        self.plan(Limits, "sandbox", "sandbox")
        self.plan(GraphRun, "graph", "graph")
        self.write(RunConfig)
        named = {"to": Quantizers, "method": Method}
        links = {n: ", ".join(map(self.named, models(u))) for n, u in named.items()}
        self.parts.append(QUANTIZE.format(**links))
        for union in named.values():
            for kind in models(union):
                self.write(kind)
        targets = list(models(Target))
        self.parts.append(EXPORT.format(target=", ".join(map(self.named, targets))))
        for kind in targets:
            self.write(kind)
        self.write(Limits)
        self.parts.append(GRAPH)
        self.write(GraphRun)
        return "\n\n".join(part.rstrip() for part in self.parts) + "\n"

    def plan(self, annotation: Any, heading: str, path: str) -> None:
        """Give every class that is reachable its heading, before links to it are written."""
        for model in models(annotation):
            if model in self.headings:
                continue
            kind = kind_of(model)
            self.headings[model] = f"{heading}: {kind}" if kind else heading
            for name, field in model.model_fields.items():
                inner = f"{path}.{name}" if path else name
                self.plan(field.annotation, inner, inner)

    def write(self, model: type[BaseModel]) -> None:
        """The section of a class, and those that it leads to."""
        heading = self.headings[model]
        if self.written(heading):
            return
        level = "###" if re.match(r"\w+\.|to:|method:|for:", heading) else "##"
        about, meanings = described(model)
        rows = [
            (f"`{name}`", self.type_of(field), default(field), meanings.get(name, ""))
            for name, field in model.model_fields.items()
            if name != "kind"
        ]
        self.parts.append(f"{level} {heading}\n\n{about}".rstrip())
        self.parts.append(f"`{model.__module__}.{model.__name__}`")
        if rows:
            lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
            cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
            self.parts.append("\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells]))
        for field in model.model_fields.values():
            for inner in models(field.annotation):
                self.write(inner)

    def written(self, heading: str) -> bool:
        return any(re.match(rf"##+ {re.escape(heading)}(\n|$)", part) for part in self.parts)

    def type_of(self, field: FieldInfo) -> str:
        single = any(_is_listed(mark) for mark in field.metadata)
        bounds = [
            f"{sign} {bound(getattr(mark, name))}"
            for mark in field.metadata
            for kind, (name, sign) in SIGNS.items()
            if isinstance(mark, kind)
        ]
        named = self.named(field.annotation, single)
        return " ".join([named, " and ".join(bounds)]).strip()

    def named(self, annotation: Any, single: bool = False) -> str:
        """A type in plain words; classes link to their sections."""
        origin, parts = get_origin(annotation), get_args(annotation)
        if annotation in self.headings:
            heading = self.headings[annotation]
            return f"[{kind_of(annotation) or heading}](#{slug(heading)})"
        if origin is Literal:
            return ", ".join(f"`{value}`" for value in parts)
        if origin in (Union, types.UnionType):
            return ", ".join(self.named(p) if p is not type(None) else "null" for p in parts)
        if origin is tuple:
            inner = self.named(parts[0])
            if parts[-1] is not Ellipsis:
                return f"list of {len(parts)}: {inner}"
            return f"{inner}, or a list" if single else f"list of {inner}"
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return f"names with {self.named(parts[1])}".replace("Any", "any value")
        if origin is not None:  # Annotated
            marks = annotation.__metadata__
            return self.type_of_marked(parts[0], marks)
        return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))

    def type_of_marked(self, annotation: Any, marks: tuple[Any, ...]) -> str:
        field = FieldInfo(annotation=annotation)
        field.metadata = list(marks)
        return self.type_of(field)


def bound(value: float) -> str:
    """A limit as people write it."""
    return "2^63" if value == 2**63 else f"{value:,}"


def _is_listed(mark: Any) -> bool:
    return isinstance(mark, BeforeValidator) and mark.func is listed


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def kind_of(model: type[BaseModel]) -> str:
    """The name of a member of a union, else nothing."""
    field = model.model_fields.get("kind")
    return str(field.default) if field else ""


def slug(heading: str) -> str:
    """The anchor of a heading, in MkDocs as on GitHub."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(plain(value), ensure_ascii=False)}`"


def plain(value: Any) -> Any:
    """A default as it would stand in a run file."""
    if isinstance(value, BaseModel):
        given = {
            name: plain(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if name != "kind" and getattr(value, name) != field.default
        }
        kind = kind_of(type(value))
        return {"kind": kind, **given} if kind and given else kind or given
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value


def page() -> str:
    """The page as Markdown."""
    return Writer().run()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
