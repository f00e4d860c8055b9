"""The report of a quickstart: how the model was made, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from culm.eval.inspection import attention_maps
from culm.eval.plots import attention, bars, lines
from culm.eval.report import (
    HELD_OUT,
    curve,
    percent,
    samples_text,
    score_table,
    table,
)
from culm.files import read_json, read_lines
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

SHOWN = {"base": "base", "sft": "fine-tuned", "rl": "reinforced", "control": "control"}
MAPPED = "What is 17 + 25?"

Stage = Mapping[str, Any]


def write_report(
    folder: Path,
    stages: Mapping[str, Stage],
    summary: Mapping[str, Any],
    model: Transformer,
    tokenizer: Tokenizer,
) -> None:
    """`report.md` and its plots in `plots/`."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    _draw(folder, plots, summary, model, tokenizer)
    parts = [
        "# From raw text to a model that answers",
        _opening(stages, summary),
        _corpus(stages),
        _pretraining(folder, stages, summary),
        _tuning(stages, summary),
        _evaluation(stages),
        _packs(stages),
        _inside(),
        _costs(summary),
        _again(folder),
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _draw(
    folder: Path, plots: Path, summary: Stage, model: Transformer, tokenizer: Tokenizer
) -> None:
    metrics = {
        name: read_lines(folder / name / "metrics.jsonl")
        for name in ("pretrain", "sft", "rl", "control")
    }
    losses = {name: curve(metrics[name], "loss") for name in ("pretrain", "sft")}
    done = losses["pretrain"][-1][0] if losses["pretrain"] else 0
    losses["sft"] = [(done + step, loss) for step, loss in losses["sft"]]
    lines(
        plots / "loss.png", losses, "step, of one stage after the other",
        "loss, nats per learned token",
    )  # fmt: skip
    held_out = curve(read_lines(folder / "pretrain" / "eval.jsonl"), "bits_per_byte")
    lines(plots / "bits_per_byte.png", {"pretrain": held_out}, "step", HELD_OUT)
    rewards = {
        "reward": curve(metrics["rl"], "reward"),
        "control: shuffled rewards": curve(metrics["control"], "reward"),
    }
    lines(plots / "reward.png", rewards, "step", "mean reward")
    shown = {SHOWN[name]: summary["exact_match"][name] for name in SHOWN}
    bars(plots / "exact_match.png", shown)
    ids = tokenizer.chat.prompt([{"role": "user", "content": MAPPED}])
    names = [tokenizer.decode([id], specials=True) for id in ids]
    last = len(model.blocks) - 1
    heads = attention_maps(model, ids)[last][:4]
    attention(plots / "attention.png", heads, names, f"layer {last}")


def _opening(stages: Mapping[str, Stage], summary: Stage) -> str:
    scores, size = summary["exact_match"], summary["bits_per_byte"]
    score, tuned = scores["rl"]["all"], scores["sft"]["all"]
    moved = "fell" if size["after"] < size["before"] else "did not fall: they went"
    minutes = sum(summary["seconds"].values()) / 60
    return (
        f"In {minutes:.1f} minutes, a model was trained from scratch on "
        f"{stages['tokenizer']['bytes'] / 1e6:.1f} MB of text, fine-tuned on dialogues, and "
        f"trained further by reinforcement learning. Bits per byte of held-out text {moved} from "
        f"{size['before']:.2f} to {size['after']:.2f}. After fine-tuning the model answers "
        f"{percent(tuned)} of unseen questions exactly, after reinforcement learning "
        f"{percent(score)}: {_change(tuned['value'], score['value'])}."
    )


def _change(before: float, after: float) -> str:
    """In the words of the numbers, which may go down."""
    points = 100 * (after - before)
    if abs(points) < 0.05:
        return "no change"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'}"


def _corpus(stages: Mapping[str, Stage]) -> str:
    read, words = stages["corpus"], stages["tokenizer"]
    rows = [
        ("source", read["source"]),
        ("documents", f"{words['documents']:,}"),
        ("bytes", f"{words['bytes']:,}"),
        ("exact duplicates dropped", f"{words['dropped']:,}"),
        ("documents held out", f"{words['held_out_documents']:,}"),
        ("tokens in the vocabulary", f"{words['vocabulary']:,}"),
        ("tokens in the corpus", f"{words['tokens']:,}"),
        ("bytes per token, held-out text", f"{words['bytes_per_token']:.2f}"),
    ]
    return "## Text and tokens\n\n" + table(("", ""), rows)


def _pretraining(folder: Path, stages: Mapping[str, Stage], summary: Stage) -> str:
    facts, size = stages["pretrain"], summary["bits_per_byte"]
    samples = read_json(folder / "pretrain" / "results.json")["samples"]
    return (
        "## Pretraining\n\n"
        f"The base model was trained on {facts['tokens']:,} tokens in {facts['steps']:,} steps "
        f"({facts['tokens_per_second']:,.0f} tokens/s); half of the rows are text, the others "
        f"dialogues. Held-out text took {size['before']:.3f} bits per byte before and "
        f"{size['after']:.3f} after."
        "\n\n![loss](plots/loss.png)\n\n![bits per byte](plots/bits_per_byte.png)\n\n"
        f"Samples:\n\n{samples_text(samples)}"
    )


def _tuning(stages: Mapping[str, Stage], summary: Stage) -> str:
    sft, rl, reward = stages["sft"], stages["rl"], summary["reward"]
    return (
        "## Fine-tuning and reinforcement learning\n\n"
        f"Fine-tuning took {sft['steps']:,} steps on dialogues; the loss counts the assistant's "
        "words and the end of its turn. A third of the rows are text of the first stage, so "
        f"that it is remembered. Then {rl['steps']:,} steps of GRPO "
        "learned from rewards for correct answers: the mean reward went from "
        f"{reward['first']:.2f} to {reward['last']:.2f}. In the control run, "
        f"{stages['control']['steps']:,} steps from the same start, the rewards were shuffled "
        f"among the answers: {reward['control_first']:.2f} to {reward['control_last']:.2f}."
        "\n\n![reward](plots/reward.png)"
    )


def _evaluation(stages: Mapping[str, Stage]) -> str:
    evaluated = stages["evaluate"]
    models = {SHOWN[name]: evaluated[name] for name in SHOWN}
    rows = [
        [
            name,
            f"{model['bits_per_byte']:.3f}",
            percent(model["exact_match"]["all"]),
            f"{model['tokens_per_second']:,.0f}",
        ]
        for name, model in models.items()
    ]
    head = ("model", "bits per byte of held-out text", "exact match, all tasks", "tokens/s")
    matches = {name: model["exact_match"] for name, model in models.items()}
    examples = [
        (one["task"], f"`{one['prompt']}`", f"`{one['reply']}`", "yes" if one["score"] else "no")
        for one in evaluated["rl"]["examples"]
    ]
    return "\n\n".join(
        [
            "## Evaluation",
            "All questions are from the test split: their operands and strings appear in no "
            "training question. Brackets show the 95 % interval.",
            table(head, rows),
            "Dialogues alone would make the model forget the corpus: the bits per byte show how "
            "much the text in fine-tuning keeps.",
            score_table(matches),
            _gains(evaluated["gains"]),
            "![exact match](plots/exact_match.png)",
            "One answer per task, after reinforcement learning:",
            table(("task", "question", "answer", "correct"), examples),
        ]
    )


def _gains(gains: Mapping[str, Stage]) -> str:
    """Differences in percentage points, on the same questions."""
    rl, control = (
        f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for gain in (gains["rl"], gains["control"])
    )
    return (
        "Compared with the fine-tuned model question by question (paired bootstrap), reinforcement "
        f"learning changed the score by {rl} percentage points, and the control with shuffled "
        f"rewards by {control}."
    )


def _packs(stages: Mapping[str, Stage]) -> str:
    packs = stages["pack"]["packs"]
    first = packs["chat"]["perplexity"]
    rows = [
        [
            f"`{pack['path']}`",
            f"{pack['bytes'] / 1e6:.1f} MB",
            f"{pack['bits_per_byte']:.4f}",
            f"{100 * (pack['perplexity'] / first - 1):+.2f} %",
            percent(pack["exact_match"]),
        ]
        for pack in packs.values()
    ]
    head = ("model", "weights", "bits per byte", "perplexity", "exact match, all tasks")
    return (
        "## Quantised and exported\n\nEach model was written, read back and scored, on the "
        f"held-out text and {packs['chat']['exact_match']['items']} of the questions above.\n\n"
        + table(head, rows)
    )


def _inside() -> str:
    return (
        "## Attention\n\nWhat each token of a question attends to, in four heads of the last "
        "layer.\n\n"
        "![attention](plots/attention.png)"
    )


def _costs(summary: Stage) -> str:
    rows = [
        (name, f"{seconds:.0f}", f"{summary['peak_bytes'][name] / 2**20:,.0f}")
        for name, seconds in summary["seconds"].items()
    ]
    return "## Time and memory\n\n" + table(("stage", "seconds", "peak MiB"), rows)


def _again(folder: Path) -> str:
    chat, again = quote(f"{folder}/chat"), f"{folder}-again"
    commands = [
        f"culm train {quote(f'{folder}/{name}/run.yaml')} {quote(f'folder={again}/{name}')}"
        for name in ("pretrain", "sft", "rl", "control")
    ]
    commands += [
        f"culm eval {chat}",
        f"culm quantize {chat} {quote(f'{again}/int8')} --to int8",
        f"culm quantize {chat} {quote(f'{again}/int4')} --to int4",
        f"culm export {chat} {quote(f'{again}/hf')}",
        f"culm export {chat} {quote(f'{again}/chat.gguf')} --dtype q8_0",
        f"culm chat {chat}",
    ]
    return "\n".join(["## Run each stage again", "", "```", *commands, "```"])
