"""What a run learns from: rows of its corpus, or the questions that it would ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from culm.config import SettingError
from culm.data.prepare import prepare
from culm.data.texts import texts_of
from culm.dist.ranks import Ranks
from culm.objective.grpo import GRPO
from culm.parts import check_ends, loader, make_tokenizer
from culm.plan.sample import sample
from culm.run import RunConfig
from culm.tokenizer.chat import Chat
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE
from culm.train.checkpoint import steps_in
from culm.train.folder import before
from culm.verbs.words import count

SAMPLES = 3
MADE_BY = ("seed", "start", "tokenizer", "model", "data")  # settings that the corpus depends on
QUESTIONS = 64  # looked at for the length of their prompts


@dataclass(frozen=True)
class Lesson:
    """facts: (name, value) lines. samples: rows in spans (text, learned). context: of a row."""

    facts: list[tuple[str, ...]]
    samples: list[list[tuple[str, bool]]]
    context: int


def begun(config: RunConfig) -> bool:
    """Whether the run folder holds what these settings made.

    Raises:
        SettingError: it holds what others made, and checkpoints of it.
    """
    folder = Path(config.folder)
    old, new = before(folder), config.model_dump(mode="json")
    changed = [name for name in MADE_BY if old and old.get(name) != new[name]]
    if changed and steps_in(folder):
        raise SettingError(
            f"{changed[0]}: {folder} was trained with other settings of it; give a new run another "
            "folder=..."
        )
    return bool(old) and not changed


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The tokenizer of a new model: the run's own, or one trained on a sample."""
    assert config.model is not None
    own = Path(config.folder) / "tokenizer" / "tokenizer.json"
    if (begun(config) and own.exists()) or config.data.prepared is not None:
        tokenizer = make_tokenizer(config, Path(config.folder))  # which is only read here
    else:
        settings = config.tokenizer or BPE(vocabulary=config.model.vocabulary)
        tokenizer = settings.build(
            texts_of(sample(config.data.open(config.seed)), config.data.format)
        )
    if tokenizer.vocabulary > config.model.vocabulary:
        raise SettingError(
            f"model.vocabulary: {config.model.vocabulary} is less than the tokenizer's "
            f"{tokenizer.vocabulary}"
        )
    return tokenizer


def lesson_of(config: RunConfig, tokenizer: Tokenizer, temporary: Path, context: int) -> Lesson:
    """Rows as the run would see them; a sample is prepared in the temporary folder."""
    if isinstance(config.train.objective, GRPO):
        return _questions(config, config.train.objective, tokenizer)
    place, share = config.data.prepared or Path(config.folder) / "data", 1.0
    name = str(place)
    if config.data.prepared is None and not (begun(config) and place.exists()):
        records, data = sample(config.data.open(config.seed)), config.data
        place, name, share = temporary / "data", records.name, records.share or 0.0
        if data.tasks:
            share = len(records.records) / data.questions
        prepare(records, data.format, tokenizer, place, data.held_out, config.seed)
    rows = loader(config, tokenizer, place, context, Ranks(), "train")
    check_ends(rows, tokenizer)
    whole = share == 1.0
    facts: list[tuple[str, ...]] = [
        ("source", name if whole else f"{name}; figures from a sample at its beginning"),
        ("filled places", f"{100 * rows.efficiency:.1f} % of {context} in a row"),
    ]
    if share:
        epochs = config.train.steps * config.train.rows * share / rows.rows
        facts.append(("learned tokens", ("" if whole else "about ") + count(rows.targets / share)))
        facts.append(("epochs", f"{epochs:.2f}"))
    if rows.truncated:
        facts.append(("cut off at their end", f"{rows.truncated:,} documents"))
    return Lesson(facts, rows.preview(SAMPLES, tokenizer), context)


def _questions(config: RunConfig, objective: GRPO, tokenizer: Tokenizer) -> Lesson:
    if not config.data.tasks:
        raise SettingError("data.tasks: an on-policy objective needs tasks to answer")
    chat, samples, longest = Chat(tokenizer), [], 0
    for index in range(QUESTIONS):
        task = config.data.tasks[index % len(config.data.tasks)]
        question = task.question("train", index, config.seed + 1)
        prompt = chat.prompt([{"role": "user", "content": question.prompt}])
        longest = max(longest, len(prompt))
        samples.append([(tokenizer.decode(prompt, specials=True), False), (question.answer, True)])
    facts: list[tuple[str, ...]] = [
        ("tasks", ", ".join(task.name for task in config.data.tasks)),
        ("answers", f"{config.train.rows:,} a step, in groups of {objective.group}"),
        ("longest prompt", f"{longest} tokens, and up to {objective.answer_tokens} of an answer"),
    ]
    return Lesson(facts, samples[:SAMPLES], longest + objective.answer_tokens)
