"""One run on the board: its state, curves, settings and samples, from the files in its folder."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from culm.eval.curves import flat
from culm.files import read_json, read_lines
from culm.serve.board.metrics import Metrics
from culm.serve.board.reduce import Curve, merged, plain
from culm.serve.board.table import Table
from culm.train.run_folder import MANIFEST, SETTINGS
from culm.train.status import read_status
from culm.train.trackers.tracker import numbers

Axis = Literal["step", "tokens", "seconds", "flops"]
BEST = {"bits_per_byte": min, "eval.loss": min, "reward": max, "loss": min}  # the first there is


class Run:
    """A run folder, kept up to date by `read`.

    key: by which pages ask for it. metrics: of its steps. evaluations: of `eval.jsonl`, with
    `eval.NAME` for a name that steps have too. problem: a file that could not be read, in words.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.status: dict[str, Any] = {"state": "unknown"}
        self.settings: dict[str, Any] = {}
        self.samples: list[dict[str, str]] = []
        self.problem = ""
        self._evaluated: list[dict[str, Any]] = []
        self._flops_per_token: float | None = None
        self._seen: dict[str, tuple[int, int, int] | None] = {}
        self._changes = 0
        self._summary: dict[str, Any] = {}

    @property
    def version(self) -> str:
        """Another one after each change of what is shown."""
        return f"{self.metrics.version}.{self._changes}"

    def read(self) -> bool:
        """Read what is new; whether there is more to read at once."""
        try:
            if not self.folder.is_dir():
                self._become({"state": "gone", "reason": "the folder is not there any more"})
                return False
            self._become(read_status(self.folder))
            self._read_small_files()
            more = self.metrics.read()
            self.problem = ""
        except Exception as error:  # whatever a file holds, the other runs are shown
            self.problem, more = f"{type(error).__name__}: {error}", False
        return more

    def _become(self, status: dict[str, Any]) -> None:
        if status != self.status:
            self.status = status
            self._changes += 1

    def _read_small_files(self) -> None:
        if self._is_new(SETTINGS):
            text = (self.folder / SETTINGS).read_text(encoding="utf-8")
            self.settings = flat(yaml.safe_load(text))
        if self._is_new(MANIFEST):
            starts = read_json(self.folder / MANIFEST).get("starts") or [{}]
            self._flops_per_token = starts[-1].get("flops_per_token")
        if self._is_new("eval.jsonl"):
            lines = read_lines(self.folder / "eval.jsonl")
            self._evaluated = list({line["step"]: line for line in lines}.values())
            self.samples = samples_in(self._evaluated)

    def _is_new(self, name: str) -> bool:
        """Whether a file is there and changed since the last call."""
        path = self.folder / name
        found = path.stat() if path.is_file() else None
        mark = (found.st_ino, found.st_size, found.st_mtime_ns) if found else None
        changed = mark != self._seen.get(name)
        self._seen[name] = mark
        self._changes += changed
        return changed and mark is not None

    # -- what is shown

    def summary(self) -> dict[str, Any]:
        """What the list of runs shows; JSON. Of a long file that is not read yet, what is known."""
        if self._summary.get("version") != self.version:
            self._summary = self._summarised()
        return {**self._summary, "read": self.metrics.share, "problem": self.problem}

    def _summarised(self) -> dict[str, Any]:
        table, status = self.metrics.table, self.status
        curves = self.curves("step")
        best = next(
            ({"name": name, "value": float(pick(curve.mean))}
             for name, pick in BEST.items() if (curve := curves.get(name)) and len(curve.x)), None
        )  # fmt: skip
        loss = curves.get("loss")
        return {
            "key": self.key, "folder": str(self.folder), "version": self.version,
            "state": str(status.get("state")), "reason": str(status.get("reason") or ""),
            "updated": str(status.get("updated", "")),
            "step": _last(table, "step"),
            "steps": steps if isinstance(steps := status.get("steps"), int) else None,
            "loss": float(loss.mean[-1]) if loss and len(loss.x) else None, "best": best,
            "tokens": _last(table, "tokens"), "seconds": _end(elapsed(table)),
            "damaged": self.metrics.damaged,
        }  # fmt: skip

    def curves(self, axis: Axis) -> dict[str, Curve]:
        """Every number that the run wrote, over an axis; empty if the run does not know that axis.

        `load.0`, `load.1` and so on are one curve `load`, with their extremes; so is `NAME.value` a
        curve NAME with the interval from NAME.low to NAME.high.
        """
        table = self.metrics.table
        x = self._axis(axis)
        if x is None:
            return {}
        skipped = {"step", "tokens"}
        found = {name: plain(x, table[name]) for name in table.names if name not in skipped}
        steps = np.array([line["step"] for line in self._evaluated], float)
        places = np.searchsorted(table["step"], steps, "right") if len(x) else steps.astype(int)
        over = steps if axis == "step" else np.append(0.0, x)[places]
        rows = [numbers(line) for line in self._evaluated]
        for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
            known = f"eval.{name}" if name in table.names else name
            values = np.array([row.get(name, math.nan) for row in rows])
            found[known] = plain(over, values)
        return _with_intervals(_with_families(found))

    def _axis(self, axis: Axis) -> np.ndarray | None:
        table = self.metrics.table
        if not table.rows:
            return np.empty(0)
        if axis == "step":
            return table["step"]
        if axis == "seconds":
            return elapsed(table)
        if "tokens" not in table.names or (axis == "flops" and self._flops_per_token is None):
            return None
        factor = (self._flops_per_token or 0.0) if axis == "flops" else 1.0
        return np.maximum.accumulate(np.nan_to_num(table["tokens"])) * factor


def elapsed(table: Table) -> np.ndarray:
    """Seconds of training until each row; a row of a sample stands for the steps before it too."""
    if not table.rows or "seconds" not in table.names:
        return np.zeros(table.rows)
    steps = np.diff(table["step"], prepend=table["step"][0] - 1)
    return np.cumsum(np.nan_to_num(table["seconds"]) * steps)


def samples_in(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The texts that the newest evaluation sampled."""
    for line in reversed(lines):
        lists = [
            value for name, value in line.items()
            if name.rpartition(".")[2] == "samples" and isinstance(value, list)
        ]  # fmt: skip
        texts = [one for every in lists for one in every if isinstance(one, Mapping)]
        if texts:
            names = ("temperature", "prompt", "text")
            step = str(line["step"])
            return [{"step": step, **{n: str(one.get(n, "")) for n in names}} for one in texts]
    return []


def _with_families(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """`NAME.0`, `NAME.1` and so on as one curve; of those that have the same steps."""
    families: dict[str, list[str]] = {}
    for name in curves:
        if match := re.fullmatch(r"(.+)\.\d+", name):
            families.setdefault(match[1], []).append(name)
    found = dict(curves)
    for family, members in families.items():
        parts = [curves[name] for name in members]
        if family not in curves and all(np.array_equal(one.x, parts[0].x) for one in parts):
            found = {name: curve for name, curve in found.items() if name not in members}
            found[family] = merged(parts)
    return found


def _with_intervals(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """`NAME.value` with its interval as one curve."""
    found = dict(curves)
    for name in curves:
        stem = name.removesuffix(".value")
        sides = [curves.get(f"{stem}.{side}") for side in ("low", "high")]
        low, high = sides
        if stem == name or low is None or high is None or len(low.x) != len(curves[name].x):
            continue
        for suffix in ("value", "low", "high", "items"):
            found.pop(f"{stem}.{suffix}", None)
        found[stem] = curves[name]._replace(low=low.mean, high=high.mean)
    return found


def _last(table: Table, name: str) -> float | None:
    return _end(table[name]) if name in table.names else None


def _end(values: np.ndarray) -> float | None:
    return float(values[-1]) if len(values) and math.isfinite(values[-1]) else None
