"""What a run would learn from: rows of its corpus, or the questions that it would ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from culm.data.clean.cleaner import Cleaner
from culm.data.loader import Loader
from culm.data.manifest import Manifest
from culm.data.mixture import Mixture
from culm.data.origin import changes_since
from culm.data.prepare import prepare
from culm.data.prepared import verify
from culm.data.settings import DataConfig, StreamConfig
from culm.data.texts import texts_of
from culm.parallel.ranks import Ranks
from culm.plan.sample import Sample, relative_error, sample
from culm.rollout.environment import Fitting, TaskEnvironment, question_remarks
from culm.run.assemble import check_ends, loader
from culm.run.initial import check_own_tokens, make_tokenizer, source_of
from culm.run.settings import RunConfig
from culm.run.streaming import stream_batches
from culm.task.task import Task
from culm.tokenizer.chat import Chat
from culm.tokenizer.message import Message
from culm.tokenizer.rows import check_vocabulary
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.run_folder import prepared_by
from culm.verbs.format import count, size
from culm.verbs.preview_curriculum import curriculum_facts, is_graded, planned_grading
from culm.verbs.preview_mix import mixture_facts, planned_mixture

SAMPLES = 3
REFERENCE = "log-probabilities of the start, computed for all pairs before the first step"
QUESTIONS = 64  # read to find the longest prompt


@dataclass(frozen=True)
class Preview:
    """facts: (name, value) lines. samples: rows in spans (text, learned). context: of a row.

    prepared: the folder of the corpus, if it holds all that the run would prepare. sequences: of
    the largest row: 2 of a pair. data: fingerprint of the run's data, where it is known.
    """

    facts: list[tuple[str, ...]]
    samples: list[list[tuple[str, bool]]]
    context: int
    prepared: Path | None = None
    sequences: int = 1
    data: str | None = None


class Corpus:
    """What the plan of a run reads of its corpus, once."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.folder = config, Path(config.folder)

    @cached_property
    def prepared(self) -> Path | None:
        """The folder of the corpus, where it is prepared already."""
        if self.config.data.corpus is not None:
            return self.config.data.corpus
        folder = self.folder / "data"
        return folder if self._is_made and folder.exists() else None

    @cached_property
    def sample(self) -> Sample:
        """Of the text.

        Raises:
            SettingError: one of the records that were read is not as the format wants it.
        """
        data = self.config.data
        return sample(data.open(self.config.seed), data.format, data.invalid)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a new model: the run's own, or one trained on what was read."""
        config = self.config
        assert config.model is not None
        kept = self._is_made and (self.folder / "tokenizer" / "tokenizer.json").exists()
        if kept or config.data.corpus is not None:
            tokenizer = make_tokenizer(config, self.folder)  # which is only read here
        else:
            settings = config.new_tokenizer
            text = self.sample if self.sample.whole else self.sample.half()
            data = config.data
            texts = texts_of(text, data.format, data.invalid, cleaner=Cleaner(data.clean))
            tokenizer = settings.build(texts)
        check_vocabulary(tokenizer, config.model.vocabulary, "model.vocabulary")
        check_own_tokens(config, tokenizer, config.model.vocabulary)
        return tokenizer

    @cached_property
    def _is_made(self) -> bool:
        return prepared_by(self.folder, self.config, source_of(self.config))


def preview(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    temporary: Path,
    context: int,
    ranks: int = 1,
) -> Preview:
    """Rows as the run would see them on this many ranks; what was read is prepared in the temporary
    folder.
    """
    if config.train.objective.reads == "rollouts":
        return _questions(config, tokenizer, context)
    data, folder = config.data, _folder(corpus, config.data, tokenizer, temporary)
    seen = corpus.sample if corpus.prepared is None else None
    grading = planned_grading(config, tokenizer)
    rows = loader(config, tokenizer, folder, context, Ranks(count=ranks), "train", grading=grading)
    check_ends(rows, tokenizer)
    facts: list[tuple[str, ...]] = [("source", seen.name if seen else str(folder))]
    if seen is not None:
        facts.append(("read", _read(seen)))
    facts.append(("packing", rows.packing))
    share = _share(seen, data.held_out)
    mixed = planned_mixture(config, tokenizer, rows, context, ranks, share)
    facts += _learned(config, tokenizer, rows, seen, share)
    facts += mixture_facts(config, mixed, rows, share)
    if data.stream is not None:
        facts.append(("stream", _stream(data.stream)))
    facts += curriculum_facts(config, rows)
    facts.append(("held out", _held_out(config, folder, seen)))
    if "reference" in config.train.objective.columns and config.train.objective.reads == "pairs":
        facts.append(("reference", REFERENCE))
    facts += [("note", remark) for remark in (mixed or rows).remarks]
    facts += [("note", f"{one}; the corpus has what was there then") for one in _changes(config)]
    samples = rows.preview(SAMPLES, tokenizer)
    if mixed is not None:
        samples = [one.text(row, tokenizer) for one, row in mixed.preview(SAMPLES)]
    complete = folder if seen is None or seen.whole else None
    data_read = _fingerprint(config, tokenizer, context, ranks, mixed or rows, complete)
    return Preview(facts, samples, context, complete, rows.group, data_read)


def _folder(corpus: Corpus, data: DataConfig, tokenizer: Tokenizer, temporary: Path) -> Path:
    """Of the prepared corpus; if it is not prepared, of what was read of it."""
    if corpus.prepared is not None:
        verify(corpus.prepared)
        return corpus.prepared
    assert corpus.sample is not None
    prepare(
        corpus.sample, data.format, tokenizer, temporary / "data",
        data.held_out if corpus.sample.whole else 0.0, duplicates=data.duplicates,
        invalid=data.invalid, difficulty=data.difficulty, cleaner=Cleaner(data.clean),
    )  # fmt: skip
    return temporary / "data"


def _stream(stream: StreamConfig) -> str:
    tokenise = "process that tokenises" if stream.workers == 1 else "processes that tokenise"
    return (
        f"{stream.workers} {tokenise} on each rank, windows of {stream.shuffle:,} documents are "
        "shuffled"
    )


def _fingerprint(
    config: RunConfig, tokenizer: Tokenizer, context: int, ranks: int,
    rows: Loader | Mixture, complete: Path | None,
) -> str | None:  # fmt: skip
    """Of the run's data; None where the plan has read a part of them only."""
    if config.data.stream is not None:
        return stream_batches(config, tokenizer, context, Ranks(count=ranks)).fingerprint
    return rows.fingerprint if complete is not None and is_graded(config) else None


def _changes(config: RunConfig) -> list[str]:
    """How files changed from which corpora were prepared elsewhere, which a run does not read."""
    named = (config.data.corpus, *(one.corpus for one in config.data.mix))
    folders = dict.fromkeys(folder for folder in named if folder is not None)
    return [one for folder in folders for one in changes_since(Manifest.read(folder).origin)]


def _share(seen: Sample | None, held_out: float) -> float:
    """Of the text that a run learns, how much the plan has; 0 where it is not known."""
    if seen is None or seen.whole:
        return 1.0
    return (seen.share or 0.0) / (1.0 - held_out)  # nothing of a sample is held out


def _learned(
    config: RunConfig, tokenizer: Tokenizer, rows: Loader, seen: Sample | None, share: float
) -> list[tuple[str, ...]]:
    """How many tokens of the corpus are learned, and how often; nothing where it is not known."""
    data, around = config.data, ""
    if seen is not None and not seen.whole:
        error = relative_error(seen, data.format, tokenizer, half=config.model is not None)
        around = "" if error is None else f" ± {100 * error:.0f} %"
    if not share:
        return []
    about = "about " if share < 1.0 else ""
    facts: list[tuple[str, ...]] = [
        ("learned tokens", f"{about}{count(rows.targets / share)}{around}")
    ]
    if not data.mix:  # whose table has the epochs of each corpus
        epochs = config.train.batch_sizes.before(config.train.steps) * share / rows.rows
        facts.append(("epochs", f"{about}{epochs:.2f}{around}"))
    return facts


def _read(seen: Sample) -> str:
    """How much of the corpus was read."""
    what = f"{size(seen.read_bytes)} of text, {seen.read_records:,} records"
    if seen.whole:
        return f"all: {what}"
    figures = f"figures are from {len(seen.records):,} of them"
    if seen.ended:
        return f"all: {what}; {figures}"
    whole = "" if seen.total is None else f" of about {size(seen.total)}"
    return f"the first {what}{whole}; {figures}, and the run will check the others"


def _held_out(config: RunConfig, folder: Path, seen: Sample | None) -> str:
    """What share of the text is not learned."""
    if seen is not None and not seen.whole:
        return f"about {100 * config.data.held_out:.1f} % of the bytes"
    manifest = Manifest.read(folder)
    documents = manifest.splits["held_out"].documents if "held_out" in manifest.splits else 0
    return f"{100 * manifest.held_out_share:.1f} % of the bytes, in {documents:,} documents"


def _questions(config: RunConfig, tokenizer: Tokenizer, context: int) -> Preview:
    tasks: Sequence[Task] = config.data.tasks
    rollouts, seed = config.train.rollouts, config.seed + 1
    chat, samples, longest = Chat(tokenizer), [], 0

    def fits(prompt: Sequence[Message]) -> bool:
        return len(chat.prompt(prompt)) < context

    remarks = question_remarks([Fitting(TaskEnvironment(t), fits) for t in tasks], context, seed)
    for index in range(QUESTIONS):
        number, which = divmod(index, len(tasks))
        question = tasks[which].question("train", number, seed)
        asked = [{"role": "user", "content": question.prompt}]
        if not fits(asked):
            continue
        prompt = chat.prompt(asked)
        longest = max(longest, len(prompt))
        samples.append([(tokenizer.decode(prompt, specials=True), False), (question.answer, True)])
    facts: list[tuple[str, ...]] = [
        ("tasks", ", ".join(task.name for task in tasks)),
        ("completions", f"{config.train.batch_size:,} a step, in groups of {rollouts.group}"),
        ("rewards", ", ".join(one.label or one.kind for one in config.train.rewards)),
        ("longest prompt", f"{longest} tokens, plus answers of up to {rollouts.max_tokens}"),
    ]
    if (sampler := rollouts.sampler).kind == "remote":
        reads = f"reads {sampler.weights}" if sampler.follows else "keeps its weights"
        facts.append(("sampler", f"{sampler.model} at {sampler.url}, which {reads}"))
    if (known := rollouts.curriculum) is not None:
        inside = f"pass rates from {known.low:g} to {known.high:g}"
        facts.append(("curriculum", f"{inside}, new questions, and {known.recheck:.0%} of others"))
    facts += [("note", remark) for remark in remarks]
    return Preview(facts, samples[:SAMPLES], min(context, longest + rollouts.max_tokens))
