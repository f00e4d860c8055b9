"""The card of a model on the hub: what it is, how it was made, what it scores, how to use it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from culm.config import SettingError
from culm.convert.card import FENCE
from culm.eval.report import percent, table
from culm.lineage import Lineage
from culm.ship.made import bases_of, made_text

MARK = "<!-- below: written by culm push -->"
# Numbers of a results file that are measures; the others are facts about the run.
NUMBERS = {
    "bits_per_byte": "held-out bits per byte", "loss": "held-out loss, nats per token",
    "perplexity": "held-out perplexity", "accuracy": "accuracy",
}  # fmt: skip


def hub_card(
    readme: str,
    repo: str,
    results: Mapping[str, Any],
    made: Lineage | None,
    licence: str | None,
    version: str,
) -> str:
    """README.md for a repository.

    Raises:
        SettingError: the front matter of `readme` is not YAML.

    readme: the card in the model's folder; what stands there in addition is kept. results: as a
    `results.json` has them. made: the record of the model. licence: its short name on the hub.
    """
    front, body = _parts(readme)
    bases = bases_of(made) if made else []
    more: dict[str, Any] = {"license": licence} if licence else {}
    if bases:
        more["base_model"] = bases if len(bases) > 1 else bases[0]
    front = {**front, **more, "tags": sorted({*_tags(front), "culm"})}
    if index := _index(repo, results):
        front["model-index"] = index
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    body = body or f"# {repo.rpartition('/')[2]}"
    body = body.replace("path/of/this/folder", repo)  # where `culm.load` finds it
    sections = [MARK, _usage(repo, version), _evaluation(results)]
    sections += [made_text(made) if made else "", _licence(licence, bases)]
    return f"{FENCE}{head}{FENCE}\n{body}\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _parts(readme: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card, without what an earlier push wrote.

    Raises:
        SettingError: the front matter is not YAML.
    """
    before, *rest = readme.split(FENCE, 2)
    try:
        front = yaml.safe_load(rest[0]) if not before.strip() and len(rest) == 2 else None
    except yaml.YAMLError as error:
        raise SettingError(
            f"README.md: its front matter is not readable as YAML: {error}"
        ) from None
    if not isinstance(front, dict):  # a line between two paragraphs
        return {}, readme.partition(MARK)[0].strip()
    return front, rest[1].partition(MARK)[0].strip()


def _tags(front: Mapping[str, Any]) -> list[str]:
    given = front.get("tags") or []
    return [given] if isinstance(given, str) else [str(tag) for tag in given]


def _usage(repo: str, version: str) -> str:
    return f"""\
## Use it

```bash
culm chat {repo}
culm serve {repo}
```

This is version `{version}`; each version is a tag."""


def _rows(results: Mapping[str, Any], name: str = "") -> Iterable[tuple[str, Any]]:
    """Each measure with its value: a number, or one with an interval."""
    for key, value in results.items():
        label = f"{name}{key}"
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            if all(_finite(value[one]) for one in ("value", "low", "high")):
                yield name + key, value
        elif isinstance(value, Mapping):
            yield from _rows(value, "" if key == "scores" else f"{label}: ")
        elif key in NUMBERS and _finite(value):
            yield name + NUMBERS[key], value


def _finite(value: Any) -> bool:
    """Whether it is a number; one that is not finite is null in a results file."""
    return isinstance(value, int | float) and math.isfinite(value)


def _evaluation(results: Mapping[str, Any]) -> str:
    rows = [
        (label, percent(value) if isinstance(value, Mapping) else f"{value:.4f}",
         f"{value['items']:,}" if isinstance(value, Mapping) and value.get("items") else "")
        for label, value in _rows(results)
    ]  # fmt: skip
    if not rows:
        return "## Evaluation\n\nNothing was measured."
    note = "In brackets: 95 % intervals over the questions."
    return f"## Evaluation\n\n{table(('measure', 'result', 'questions'), rows)}\n\n{note}"


def _index(repo: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results for the hub's own table."""
    found = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": label, "type": label.replace(" ", "-")},
            "metrics": [{"type": "accuracy", "value": round(value["value"], 4)}],
        }
        for label, value in _rows(results)
        if isinstance(value, Mapping)
    ]
    return [{"name": repo.rpartition("/")[2], "results": found}] if found else []


def _licence(licence: str | None, bases: list[str]) -> str:
    base = f" It was made from {', '.join(bases)}, whose terms apply too." if bases else ""
    if licence is None:
        return f"## Licence\n\nNone was stated.{base}"
    return f"## Licence\n\n{licence}.{base}"
