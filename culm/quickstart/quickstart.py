"""From raw text to a model that answers, in one command; every stage once, each measured.

    corpus -> tokenizer -> pretrain -> sft -> rl (and its control) -> evaluate -> pack -> report

Finished stages are listed in `stages.json`; an interrupted one resumes. The training stages share
the time: each measures how long a step takes and trains as many steps as fit into its share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from culm import log
from culm.config import SettingError
from culm.convert import native
from culm.convert.export import quantize, write_export
from culm.convert.load import read
from culm.data.manifest import Manifest
from culm.data.texts import texts_of
from culm.eval.questions import Answered, gain
from culm.files import read_lines
from culm.quickstart.report import write_report
from culm.quickstart.scorer import Scorer
from culm.quickstart.stages import Stages, keep, recall
from culm.quickstart.summary import MODELS, summarize
from culm.run.assemble import prepared_folder
from culm.run.initial import make_tokenizer
from culm.run.settings import RunConfig, read_run
from culm.run.train import Result, seconds_per_step, train
from culm.train.guard import locked

BYTES_PER_MINUTE = 20 << 20  # limit of the text that is read: far more than a model learns here
SETTINGS = "quickstart.json"
PACKS = ("packs/int8", "packs/int4", "packs/hf", "packs/chat-f16.gguf", "packs/chat-q8_0.gguf")
RESERVE = 70.0  # of ten minutes, seconds reserved for the stages after training
SHARES = {"pretrain": 0.40, "sft": 0.26, "rl": 0.17, "control": 0.17}
MARGINS = {"rl": 0.75}  # share of its time that a stage plans: answers outgrow those of the trial
MARGIN = 0.93  # of the other stages
# A model that never stops reading either does not forget it (docs/log.md).
DIALOGUES = 0.5  # of the rows of pretraining
TEXT = 1 / 3  # of the rows of fine-tuning
LEAST_STEPS = 10
LEAST_QUESTIONS = 20  # per task, in runs shorter than ten minutes
PACK_QUESTIONS = 50  # per task, for a quantised or exported model
AVERAGED = 10  # steps, for the reward at the start and at the end


def quickstart(folder: str, text: list[str], minutes: float, device: str, seed: int) -> Path:
    """Run the stages that are not finished; gives the folder of `report.md` and `summary.json`.

    Raises:
        SettingError: the folder was started with other settings.
    """
    if not folder:
        raise SettingError("--folder: it is empty; `.` is the folder here")
    path = Path(folder)
    with locked(path):
        Quickstart(path, text, minutes, device, seed).run()
    _say_what_is_next(path)
    return path


class Quickstart:
    """The settings and stages of one folder."""

    def __init__(
        self, folder: Path, text: list[str], minutes: float, device: str, seed: int
    ) -> None:
        self.folder, self.text, self.device, self.seed = folder, text, device, seed
        self.stages, self.budget, self.started = Stages(folder), 60 * minutes, time.perf_counter()
        self.before = sum(self.stages.seconds().values())
        settings = {"text": text, "minutes": minutes, "device": device, "seed": seed}
        path = folder / SETTINGS
        known = recall(path, settings) if self.stages.read() else settings
        for setting, value in settings.items():
            if known.get(setting) != value:
                raise SettingError(
                    f"--{setting}: {folder} was started with {known.get(setting)}; "
                    "give another --folder, or delete that one"
                )
        keep(path, settings)

    def run(self) -> None:
        """Each stage with its outputs, which later stages read."""
        stages: list[tuple[str, Callable[[], dict[str, Any]], tuple[str, ...]]] = [
            ("corpus", self.corpus, ()),
            ("tokenizer", self.tokenizer, ("pretrain/tokenizer", "pretrain/data", "sft/data")),
            *((name, partial(self.training, name), (f"{name}/model",)) for name in SHARES),
            ("evaluate", self.evaluate, ()),
            ("pack", self.pack, ("chat", *PACKS)),
            ("report", self.report, ("report.md", "summary.json", "plots")),
        ]
        for number, (name, work, outputs) in enumerate(stages, 1):
            log.say(f"Stage {number} of {len(stages)}: {name}")
            self.stages.run(name, work, *outputs)

    # -- settings of the stages -----------------------------------------------------------------

    def config(self, name: str, steps: int | None = None) -> RunConfig:
        """The run of a training stage."""
        file = {"pretrain": "quickstart-pretrain", "sft": "quickstart-sft"}
        start = {"sft": "pretrain", "rl": "sft", "control": "sft"}
        settings = [
            f"folder={json.dumps(str(self.folder / name))}",
            f"device={self.device}",
            f"seed={self.seed}",
        ]
        if name in start:
            settings.append(f"start={json.dumps(str(self.folder / start[name]))}")
        if name == "pretrain" and self.text:
            limit = int(BYTES_PER_MINUTE * self.budget / 60)
            settings += [f"data.path={json.dumps(self.text)}", f"data.max_bytes={limit}"]
            samples = "eval.measures.samples"
            settings += [f'{samples}.texts=[""]', f"{samples}.temperatures=[0.5, 0.8]"]
        if name == "control":
            settings.append("train.rollout.shuffled=true")
        if steps is not None:
            every = max(5, steps // 8)
            settings += [f"train.steps={steps}", f"train.checkpoint.every_steps={every}"]
            if name == "pretrain":
                settings.append(f"eval.every_steps={-(-steps // 4)}")
            other = {"pretrain": ("sft", DIALOGUES), "sft": ("pretrain", TEXT)}
            if name in other:
                corpus, share = other[name]
                mix = [
                    {"weight": 1 - share},
                    {"corpus": str(self.folder / corpus / "data"), "weight": share},
                ]
                settings.append(f"data.mix={json.dumps(mix)}")
        return read_run(file.get(name, "quickstart-rl"), settings)[0]

    # -- stages ---------------------------------------------------------------------------------

    def corpus(self) -> dict[str, Any]:
        """Count the documents and bytes; the next stage makes tokens of them."""
        documents = size = 0
        data = self.config("pretrain").data
        source = data.open()
        with log.progress("corpus", source.size, "characters") as bar:
            for text in texts_of(source, data.format):
                documents += 1
                size += len(text.encode())
                bar.advance(len(text))
        return {"source": source.name, "documents_read": documents, "bytes_read": size}

    def tokenizer(self) -> dict[str, Any]:
        config, folder = self.config("pretrain"), self.folder / "pretrain"
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = make_tokenizer(config, folder)
        manifest = Manifest.read(prepared_folder(config, tokenizer, folder))
        prepared_folder(self.config("sft"), tokenizer, self.folder / "sft")
        held_out = manifest.splits["held_out"]
        return {
            "vocabulary": tokenizer.vocabulary,
            "documents": manifest.documents,
            "bytes": manifest.bytes,
            "tokens": manifest.tokens,
            "dropped": manifest.dropped,
            "held_out_documents": held_out.documents,
            "bytes_per_token": held_out.bytes / held_out.tokens,
        }

    def training(self, name: str) -> dict[str, Any]:
        """One training stage, within its share of the remaining time."""
        config = self.config(name, self._steps(name))
        result = train(config)
        if not result.finished:
            raise SystemExit(result.exit_code)  # the run has said that the same command resumes it
        return self._facts(name, result)

    def _steps(self, name: str) -> int:
        """As many as fit; decided once, so that a resumed stage has the same schedule."""
        if name == "control":  # the same number, so that they compare
            name = "rl"
        path = self.folder / name / "steps.json"
        if path.exists():
            return recall(path, {})["steps"]
        done = self.stages.read()
        if name in done:  # its outputs are gone
            return done[name]["steps"]
        elapsed = self.before + time.perf_counter() - self.started
        reserve = RESERVE * min(1.0, self.budget / 600)
        names = list(SHARES)
        share = SHARES[name] / sum(SHARES[other] for other in names[names.index(name) :])
        seconds = max(0.0, self.budget - elapsed - reserve) * share
        trial = seconds_per_step(self.config(name))
        affordable = int(seconds / trial * MARGINS.get(name, MARGIN))
        steps = max(LEAST_STEPS, affordable)
        if affordable < LEAST_STEPS:
            log.say(_too_short(name, affordable, trial, self.budget))
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        keep(path, {"steps": steps})
        return steps

    def _facts(self, name: str, result: Result) -> dict[str, Any]:
        path = self.folder / name / "metrics.jsonl"
        lines = read_lines(path)
        if not lines:
            raise SettingError(f"{path}: holds no steps; delete {path.parent} to train again")
        facts: dict[str, Any] = {
            "steps": result.steps,
            "tokens": lines[-1]["tokens"],
            "tokens_per_second": lines[-1]["tokens"] / sum(line["seconds"] for line in lines),
        }
        if "reward" in lines[-1]:
            rewards = [line["reward"] for line in lines]
            facts["first"] = sum(rewards[:AVERAGED]) / len(rewards[:AVERAGED])
            facts["last"] = sum(rewards[-AVERAGED:]) / len(rewards[-AVERAGED:])
        return facts

    def evaluate(self) -> dict[str, Any]:
        """The model of each stage, on the same questions and the same held-out text."""
        before = (self.folder / "pretrain" / "eval.jsonl").read_text().splitlines()[0]
        table: dict[str, Any] = {"before": json.loads(before)["bits_per_byte"]}
        scorer = self._scorer()
        questions = max(LEAST_QUESTIONS, round(scorer.questions * min(1.0, self.budget / 600)))
        answers: dict[str, list[Answered]] = {}
        with log.progress("evaluate", len(MODELS), "models") as bar:
            for name, stage in MODELS.items():
                table[name], answers[name] = scorer.evaluate(self.folder / stage, questions)
                bar.advance(1, name)
        gains = {name: gain(answers[name], answers["sft"]) for name in ("rl", "control")}
        return table | {"gains": {name: asdict(gain) for name, gain in gains.items()}}

    def _scorer(self) -> Scorer:
        corpus = self.folder / "pretrain" / "data"
        return Scorer(self.config("pretrain"), self.config("sft"), corpus)

    def pack(self) -> dict[str, Any]:
        """Quantise and export the chat model; read each result and score it."""
        chat, packs = self.folder / "chat", [self.folder / name for name in PACKS]
        int8, int4, hf, f16, q8_0 = packs
        model, tokenizer = read(self.folder / "rl", "cpu", torch.float32)
        native.save(model, tokenizer, chat)
        quantize(chat, int8, "int8")
        quantize(chat, int4, "int4")
        write_export(model, tokenizer, hf, "float32")
        write_export(model, tokenizer, f16, "f16")
        write_export(model, tokenizer, q8_0, "q8_0")
        with log.progress("pack", 1 + len(packs), "packs") as bar:
            found, scorer = {}, self._scorer()
            for path in (chat, *packs):
                found[path.stem] = scorer.packed(path, PACK_QUESTIONS)
                bar.advance(1, path.stem)
        return {"packs": found}

    def report(self) -> dict[str, Any]:
        stages = self.stages.read()
        stages.pop("report", None)  # an earlier one
        summary = summarize(stages)
        keep(self.folder / "summary.json", summary)
        model, tokenizer = read(self.folder / "chat", "cpu", torch.float32)
        write_report(self.folder, stages, summary, model, tokenizer)
        return {}


def _too_short(name: str, steps: int, seconds: float, budget: float) -> str:
    """What a budget does not pay for. seconds: of a step."""
    return (
        f"{name}: the time that is left of {budget / 60:g} minutes is enough for {steps} steps of "
        f"{seconds:.1f} s; {LEAST_STEPS} are made, so the run takes longer, and this stage learns "
        "almost nothing. Give more --minutes, and another --folder."
    )


def _say_what_is_next(folder: Path) -> None:
    log.say(
        f"""
Done. The report is {folder}/report.md. Next:

  culm chat {folder}/chat                 talk to the model
  culm serve {folder}/chat                OpenAI-compatible server and chat page
  culm train pretrain data.path=BOOKS folder=runs/books     on your own text
  culm train sft start=runs/books data.path=DIALOGUES folder=runs/books-chat
"""
    )
