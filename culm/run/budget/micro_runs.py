"""Small and short runs on the data of a run, from which its scaling law is fitted.

runs/x-budget/corpus/      the tokenizer and the prepared text, which all of them read
runs/x-budget/w64-.../     a run like any other; finished ones are read and not trained again
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culm import log
from culm.compose import merge
from culm.config import SettingError, parse
from culm.data.manifest import NAME as MANIFEST
from culm.data.manifest import Manifest
from culm.eval.measure.held_out import HeldOut
from culm.files import read_json, read_lines, write_json
from culm.model.scaling import MuP, Place
from culm.model.transformer import TransformerConfig
from culm.run.assemble import prepared_folder
from culm.run.dial import AT_ONCE, batch_size_for
from culm.run.initial import make_tokenizer
from culm.run.settings import RunConfig
from culm.run.train import train

EVALUATED = 16_384  # held-out tokens of a micro-run
OF_PATH = ("path", "tasks", "fields", "tokenizer", "split", "separator", "clean", "workers")
SECONDS = "seconds.json"


@dataclass(frozen=True)
class MicroRun:
    """A run to be made."""

    model: TransformerConfig
    tokens: int
    rate: float

    @property
    def name(self) -> str:
        size = f"w{self.model.width}-l{self.model.layers}"
        return f"{size}-t{self.tokens}-r{self.rate:.2g}"


@dataclass(frozen=True)
class Done:
    """What became of one. tokens: that it read. loss: bits per byte. seconds: in all;
    per_token: of training, without the first step.
    """

    run: MicroRun
    tokens: int
    loss: float
    seconds: float
    per_token: float


class MicroRuns:
    """Those of one run, in a folder next to its own.

    Raises:
        SettingError: the run does not train a new model on text, or holds out nothing.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.model is None or config.train.objective.kind != "next_token":
            raise SettingError(
                "--budget: it proposes the size of a new model that is trained on text; this run "
                "starts from a model, or has another objective"
            )
        if config.data.stream is not None:
            raise SettingError(
                "--budget: micro-runs read text again and again, and need held-out text; leave "
                "data.stream out and limit the text with data.max_bytes"
            )
        limits = {
            "batch_ramp": config.train.batch_ramp is not None,
            "optimizer_in_backward": config.train.optimizer_in_backward,
        }
        for name, limiting in limits.items():
            if limiting:
                raise SettingError(
                    f"--budget: it proposes the batch size and the micro-batch, which train.{name} "
                    "limits; leave it out and add it to the proposal"
                )
        self.config, self.model = config, config.model
        self.folder = Path(f"{config.folder}-budget")

    def prepare(self) -> Manifest:
        """Make the tokenizer and the corpus, or find them made."""
        config, folder = self.config, self.folder / "corpus"
        if config.data.corpus is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._refuse_other_text(folder)
            tokenizer = make_tokenizer(config, folder)
            prepared_folder(config, tokenizer, folder)
        manifest = Manifest.read(self.corpus)
        if "held_out" not in manifest.splits:
            raise SettingError(f"--budget: {self.corpus} has no held-out text; see data.held_out")
        return manifest

    @property
    def corpus(self) -> Path:
        """The prepared text."""
        return self.config.data.corpus or self.folder / "corpus" / "data"

    def _refuse_other_text(self, folder: Path) -> None:
        path = folder / "made_from.json"
        wanted = {
            "data": self.config.data.model_dump(mode="json"), "seed": self.config.seed,
            "tokenizer": self.config.tokenizer and self.config.tokenizer.model_dump(mode="json"),
            "vocabulary": self.model.vocabulary,
        }  # fmt: skip
        if path.exists() and read_json(path) != wanted:
            raise SettingError(
                f"{folder}: it was made from other data or with another tokenizer; delete "
                f"{self.folder}, or give this run another folder=..."
            )
        write_json(path, wanted)

    def config_of(self, run: MicroRun, context: int) -> RunConfig:
        """The settings of a micro-run: those of the run, in another size and length."""
        rows = batch_size_for(run.tokens, context)
        held_out = self.config.eval.first(HeldOut)
        fewer = held_out.model_copy(update={"tokens": min(held_out.tokens, EVALUATED)})
        measures = {**dict.fromkeys(self.config.eval.measures), "held_out": fewer.model_dump()}
        config = with_changes(
            self.config,
            self.corpus,
            {
                "model": run.model.model_dump(mode="json"),
                "train": train_settings(run.tokens, rows, context, run.rate)
                | {"push": None, "profile": None, "trackers": []},
                "eval": {"every_steps": None, "measures": measures},
            },
        )
        # Whatever a result depends on is in its name, so that another run never takes its place.
        text = (self.corpus / MANIFEST).read_bytes()
        settings = config.model_copy(update={"folder": "."}).model_dump_json().encode()
        digest = hashlib.sha256(settings + text).hexdigest()[:8]
        return config.model_copy(update={"folder": str(self.folder / f"{run.name}-{digest}")})

    def result(self, run: MicroRun, context: int) -> Done:
        """Train it, unless that was done before.

        Raises:
            SystemExit: it was stopped.
        """
        config = self.config_of(run, context)
        folder = Path(config.folder)
        path = folder / SECONDS
        if path.exists():
            log.say(f"{folder.name}: trained before; its result is read.")
        else:
            self._train(config, path)
        lines = read_lines(folder / "metrics.jsonl")
        later = lines[1:] or lines
        tokens = later[-1]["tokens"] - (lines[0]["tokens"] if lines[1:] else 0)
        return Done(
            run,
            lines[-1]["tokens"],
            read_json(folder / "results.json")["bits_per_byte"],
            read_json(path)["seconds"],
            sum(line["seconds"] for line in later) / tokens,
        )

    def _train(self, config: RunConfig, path: Path) -> None:
        """Train one, and write how long that took, with all times that it was interrupted."""
        metrics = path.with_name("metrics.jsonl")
        before = sum(line["seconds"] for line in read_lines(metrics))
        if before:
            log.say(f"{path.parent.name}: interrupted before; it continues.")
        began = time.perf_counter()
        done = train(config)
        if not done.finished:
            log.say(
                f"{self.folder} keeps the micro-runs so far; the same command continues with them."
            )
            raise SystemExit(done.exit_code)
        write_json(path, {"seconds": before + time.perf_counter() - began})


def train_settings(tokens: float, rows: int, context: int, rate: float) -> dict[str, Any]:
    """Of the `train` section, for a run that reads this many tokens."""
    return {
        "steps": max(1, round(tokens / (rows * context))),
        "batch_size": rows,
        "micro_batch_size": min(rows, max(1, AT_ONCE // context)),
        "optimizer": {"rate": rate},
    }


def with_changes(config: RunConfig, corpus: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The run on the prepared corpus, with further changes."""
    values = config.model_dump(mode="json")
    if config.data.corpus is None:
        values["data"] = {k: v for k, v in values["data"].items() if k not in OF_PATH}
        values["data"]["prepared"], values["tokenizer"] = str(corpus), None
    whole = merge(values, {k: v for k, v in changes.items() if k != "model"})
    return parse(RunConfig, whole | {"model": changes["model"]})


def transferred(rate: float, config: RunConfig, width: int, to: int) -> float:
    """The rate of a model of width `to` that does what this rate does in one of width `width`.

    A model with a scaling rule has that in its settings. For others the rule of muP for the
    matrices is taken for all: 1 / width, and 1 / sqrt(width) for Muon (`culm.model.scaling`).
    """
    assert config.model is not None
    if config.model.scaling is not None:
        return rate
    place: Place = "orthogonal" if config.train.optimizer.kind == "muon" else "matrix"
    return rate * MuP(base_width=width).multiples(place, to, 1).rate
