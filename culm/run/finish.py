"""After the last step: measure, write the models and the results, say what came out."""

from __future__ import annotations

import math
from typing import Any

from culm import log
from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.merge import merge_verified
from culm.adapt.quantize.qat import convert
from culm.atomic import atomic
from culm.convert import native, peft
from culm.convert.family import NoFamilyError
from culm.convert.peft.settings import NAME as ADAPTER
from culm.eval.evaluation import Evaluation
from culm.files import read_lines, refuse_nonempty, write_json
from culm.model.transformer import Transformer
from culm.run.assemble import Assembly
from culm.run.lineage import write_run_lineage
from culm.run.start import model_id
from culm.run.trained_on import trained_on
from culm.run.verdict import verdict
from culm.run.whole import whole_models
from culm.train.events import Listeners, Measured
from culm.train.judge import TrainingError
from culm.train.memory import peak_bytes
from culm.train.trackers.tracker import numbers


def finish(
    run: Assembly, evaluation: Evaluation, step: int, listeners: Listeners, changed: bool,
    remarks: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Gives the results; every rank takes part, and the writer gives what it alone reads as well.

    changed: whether any weight did. remarks: on data.

    The model is written whatever becomes of the evaluation.

    Raises:
        TrainingError: what was measured is not finite; then no model is written.
    """
    failure: Exception | None = None
    try:
        measured = evaluation.run(final=True)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        failure, measured = error, {}
    _refuse_unusable(step, measured)
    _write_models(run)
    if failure is not None:
        raise RuntimeError(
            f"{run.folder}: the model is written, but could not be measured: {failure}"
        ) from failure
    listeners(Measured(step, measured))
    results = {"step": step, **measured}
    if run.ranks.writer:
        results |= _facts(run, measured, changed, remarks)
        with atomic(run.folder / "results.json") as fresh:
            write_json(fresh, results)
    run.ranks.wait()
    return results


def check_outputs(run: Assembly) -> None:
    """Whether the models can be written; asked before the first step, and by a plan.

    Raises:
        SettingError: other files are in the way.
    """
    for name in run.objective.trained():
        refuse_nonempty(run.folder / name, native.SETTINGS)
    if isinstance(run.config.train.adapter, LoRA):
        refuse_nonempty(run.folder / "adapter", ADAPTER)


def _refuse_unusable(step: int, measured: dict[str, Any]) -> None:
    for name, value in numbers(measured).items():
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: {name} is {value} after the last step, so no model is written; "
                "lower train.optimizer.rate, and delete the checkpoints that came too late"
            )


def _facts(
    run: Assembly, measured: dict[str, Any], changed: bool, remarks: list[str]
) -> dict[str, Any]:
    """seconds: of all steps, however often the run was stopped; peak_bytes: of this process."""
    lines = read_lines(run.folder / "metrics.jsonl")
    seconds = sum(line["seconds"] for line in lines)
    facts: dict[str, Any] = {"seconds": round(seconds, 3), "peak_bytes": peak_bytes()}
    if remarks:
        facts["data"] = remarks
    evaluations = read_lines(run.folder / "eval.jsonl")
    first = evaluations[0] if evaluations and evaluations[0]["step"] == 0 else {}
    rewarded = run.config.train.objective.reads == "rollouts"
    if warnings := verdict(lines, first, measured, changed, rewarded):
        facts["warnings"] = warnings
        for warning in warnings:
            log.say(f"Warning: {warning}")
    return facts


def _write_models(run: Assembly) -> None:
    """Each model that was trained, such as a critic, in a folder of its name.

    Their adapters are merged and their weights quantised; adapters of the policy also separately.
    """
    train, trained = run.config.train, run.objective.trained()

    def build(start: Transformer) -> dict[str, Transformer]:
        # On the CPU, where a backend of the GPU cannot run.
        return train.objective.build(start, run.load, run.config.seed).cpu().trained()

    whole = whole_models(run.config, run.folder, trained, run.ranks, build)
    if whole is None:
        return
    own = (whole[name] for name, model in trained.items() if model is run.model)
    policy = next(own, run.model)
    if isinstance(train.adapter, LoRA):
        _write_adapter(run, policy)
    stages = trained_on(run, policy.trained_on)
    for name, model in whole.items():
        if adapters_of(model):
            merge_verified(model)
        if train.qat is not None:
            convert(model)
        model.trained_on = stages
        native.save(model, run.tokenizer, run.folder / name)
        write_run_lineage(run, run.folder / name)


def _write_adapter(run: Assembly, model: Transformer) -> None:
    """In the format of PEFT, where its layers have names there."""
    config = run.config
    assert isinstance(config.train.adapter, LoRA)
    # A start that was changed is in no folder: there is no base to name.
    below = config.start if config.upcycle is None and config.extend is None else None
    base = None if below is None else model_id(below)
    try:
        peft.save(model, config.train.adapter, run.folder / "adapter", base)
    except NoFamilyError as error:
        log.say(f"The adapter was merged but not saved separately: {error}.")
