"""What a run would learn from: rows of its corpus, or the questions that it would ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from culm.data.prepare import prepare
from culm.data.texts import texts_of
from culm.parallel.ranks import Ranks
from culm.plan.sample import sample
from culm.run.assemble import check_ends, loader
from culm.run.initial import make_tokenizer, source_of
from culm.run.settings import RunConfig
from culm.task.task import Task
from culm.tokenizer.chat import Chat
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary
from culm.tokenizer.train import BPE
from culm.train.run_folder import prepared_by
from culm.verbs.format import count

SAMPLES = 3
QUESTIONS = 64  # read to find the longest prompt


@dataclass(frozen=True)
class Preview:
    """facts: (name, value) lines. samples: rows in spans (text, learned). context: of a row."""

    facts: list[tuple[str, ...]]
    samples: list[list[tuple[str, bool]]]
    context: int


def tokenizer_of(config: RunConfig) -> Tokenizer:
    """The tokenizer of a new model: the run's own, or one trained on a sample."""
    assert config.model is not None
    folder = Path(config.folder)
    kept = _is_prepared(config) and (folder / "tokenizer" / "tokenizer.json").exists()
    if kept or config.data.prepared is not None:
        tokenizer = make_tokenizer(config, folder)  # which is only read here
    else:
        settings = config.tokenizer or BPE(vocabulary=config.model.vocabulary)
        tokenizer = settings.build(
            texts_of(sample(config.data.open(config.seed)), config.data.format, config.data.invalid)
        )
    check_vocabulary(tokenizer, config.model.vocabulary, "model.vocabulary")
    return tokenizer


def _is_prepared(config: RunConfig) -> bool:
    return prepared_by(Path(config.folder), config, source_of(config))


def preview(
    config: RunConfig, tokenizer: Tokenizer, temporary: Path, context: int, ranks: int = 1
) -> Preview:
    """Rows as the run would see them on so many ranks; a sample is prepared in the temporary
    folder.
    """
    if config.train.objective.reads == "rollouts":
        return _questions(config, tokenizer)
    corpus, share = config.data.prepared or Path(config.folder) / "data", 1.0
    name = str(corpus)
    if config.data.prepared is None and not (_is_prepared(config) and corpus.exists()):
        records, data = sample(config.data.open(config.seed)), config.data
        corpus, name, share = temporary / "data", records.name, records.share or 0.0
        if data.tasks:
            share = len(records.records) / data.questions
        prepare(
            records, data.format, tokenizer, corpus,
            data.held_out if share == 1.0 else 0.0, config.seed,
            duplicates=data.duplicates, invalid=data.invalid,
        )  # fmt: skip
    rows = loader(config, tokenizer, corpus, context, Ranks(count=ranks), "train")
    check_ends(rows, tokenizer)
    whole = share == 1.0
    if not whole:  # nothing of a sample is held out
        share /= 1.0 - config.data.held_out
    facts: list[tuple[str, ...]] = [
        ("source", name if whole else f"{name}; figures from a sample at its beginning"),
        ("packing", f"rows of {context} tokens, {100 * rows.efficiency:.1f} % filled"),
    ]
    if share:
        epochs = config.train.steps * config.train.batch_size * share / rows.rows
        facts.append(("learned tokens", ("" if whole else "about ") + count(rows.targets / share)))
        facts.append(("epochs", f"{epochs:.2f}"))
    facts += [("note", remark) for remark in rows.remarks]
    return Preview(facts, rows.preview(SAMPLES, tokenizer), context)


def _questions(config: RunConfig, tokenizer: Tokenizer) -> Preview:
    tasks: Sequence[Task] = config.data.tasks
    rollouts = config.train.rollouts
    chat, samples, longest = Chat(tokenizer), [], 0
    for index in range(QUESTIONS):
        number, which = divmod(index, len(tasks))
        question = tasks[which].question("train", number, config.seed + 1)
        prompt = chat.prompt([{"role": "user", "content": question.prompt}])
        longest = max(longest, len(prompt))
        samples.append([(tokenizer.decode(prompt, specials=True), False), (question.answer, True)])
    facts: list[tuple[str, ...]] = [
        ("tasks", ", ".join(task.name for task in tasks)),
        ("completions", f"{config.train.batch_size:,} a step, in groups of {rollouts.group}"),
        ("longest prompt", f"{longest} tokens, plus answers of up to {rollouts.max_tokens}"),
    ]
    return Preview(facts, samples[:SAMPLES], longest + rollouts.max_tokens)
