"""A model answers all prompts of a file: dialogues that another one is fine-tuned on.

Sequence-level knowledge distillation (arXiv 1606.07947): with temperature 0 a student learns the
most likely answers of its teacher, with samples its distribution.

Prompts are answered in blocks. After each block its dialogues are on the disk, and then a progress
file, so that the same call continues after the last block, with the same text as without a stop.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from culm import log
from culm.atomic import atomic
from culm.config import SettingError
from culm.data.example import Dialogue
from culm.data.format.messages import question_of, tools_of
from culm.data.notes import remarks_of
from culm.data.origin import origin_of, revisions_of
from culm.engine.request import Completion, Request
from culm.files import read_json, write_json
from culm.seed import keyed_integer
from culm.source.record import Record
from culm.source.source import LeftOutOnly, Source, found_in
from culm.text.language_model import SLOTS, LanguageModel
from culm.text.options import Options
from culm.text.reply import Reply

BLOCK = 256  # answers between two entries of the progress file
NO_ROOM = "prompts leave no room for an answer and are left out"
UNFINISHED = "answers did not end within --max-tokens and are left out"
EMPTY = "answers are empty and are left out"


@dataclass(frozen=True)
class Answering:
    """samples: answers to each prompt. max_tokens: of an answer. seed: of answer j to prompt i,
    with i and j. options: how tokens are sampled.
    """

    options: Options
    samples: int = 1
    max_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples > 1 and not self.options.sampling.temperature:
            raise SettingError(
                f"--samples: {self.samples} answers at temperature 0 would all be the same; give "
                "a --temperature"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """What answers depend on, besides the model and the prompts."""
        facts = {**asdict(self), "options": self.options._asdict()}
        facts["options"]["sampling"] = asdict(self.options.sampling)
        return json.loads(json.dumps(facts))


def progress_file(out: Path) -> Path:
    """Next to the answers: what they were made of, and how far."""
    return out.with_name(f"{out.name}.progress.json")


def write_answers(
    model: LanguageModel, source: Source, out: Path, settings: Answering, reads: Mapping[str, str],
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Write a dialogue for each answer, or continue to; gives remarks on what was left out.

    reads: digests of what answers depend on, such as the model, by name. An answer that did not end
    would teach to stop within a sentence, so it is left out and counted. overwrite: start again if
    there is such a file.

    Raises:
        SettingError: a record is no prompt, or `out` was written with other settings.
    """
    skipped = LeftOutOnly()
    prompts = [dialogue for _, [dialogue] in found_in(source, _prompt, skipped)]
    if not prompts:
        raise SettingError(f"{source.name}: nothing to read: it contains no prompt")
    facts = {
        **reads, "prompts": {name: file.sha256 for name, file in origin_of(source).items()},
        "revisions": revisions_of(source), "context": model.context, "cache": model.cache,
        **settings.facts,
    }  # fmt: skip
    if overwrite:
        for path in (out, progress_file(out)):
            path.unlink(missing_ok=True)
    done, size, counts = _progress(out, facts)
    if not out.exists():
        _write_progress(out, facts, 0, 0, counts)  # so that a stop in the first block is no end
    with out.open("ab") as file, log.progress("answer", len(prompts), "prompts") as bar:
        file.truncate(size)
        bar.advance(done)
        per_block = max(1, BLOCK // settings.samples)
        while done < len(prompts):
            block = list(enumerate(prompts[done : done + per_block], done))
            for line in _answers(model, block, settings, counts):
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            done += len(block)
            bar.advance(len(block))
            _write_progress(out, facts, done, file.tell(), counts)
    return remarks_of(Counter(source.left_out) + skipped.counts + counts)


def _prompt(record: Record) -> Iterator[Dialogue]:
    """The messages of a record up to its last question."""
    messages = question_of(record)
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages:
        raise ValueError("no prompt in it (prompt, instruction, messages or conversations)")
    yield Dialogue(messages, tools_of(record))


def _progress(out: Path, facts: Mapping[str, Any]) -> tuple[int, int, Counter[str]]:
    """Prompts that are done, bytes that were written for them, and what was left out.

    Raises:
        SettingError: the file was not written by this, or with other settings.
    """
    path = progress_file(out)
    if not out.exists():
        return 0, 0, Counter()
    if not path.exists():
        raise SettingError(
            f"{out}: already exists; choose another name, or replace it with --overwrite"
        )
    known = read_json(path)
    made = known.get("made", {})
    for name, value in facts.items():
        if made.get(name) != value:
            raise SettingError(
                f"{out}: was written with another {name}; choose another name, or replace it with "
                "--overwrite"
            )
    if out.stat().st_size < known["bytes"]:
        raise SettingError(
            f"{out}: {out.stat().st_size} bytes where {known['bytes']} were written, so it cannot "
            "be continued; choose another name, or replace it with --overwrite"
        )
    return known["prompts"], known["bytes"], Counter(known["left"])


def _write_progress(
    out: Path, facts: Mapping[str, Any], prompts: int, size: int, counts: Counter[str]
) -> None:
    known = {"made": facts, "prompts": prompts, "bytes": size, "left": counts}
    with atomic(progress_file(out)) as fresh:
        write_json(fresh, known)


def _answers(
    model: LanguageModel, block: Sequence[tuple[int, Dialogue]], settings: Answering,
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The dialogues of some numbered prompts, with their answers."""
    asked: list[Dialogue] = []
    requests: list[Request] = []
    for number, dialogue in block:
        ids = model.tokenizer.chat.prompt(dialogue.messages, dialogue.tools)
        room = model.context - len(ids)
        if room < 1:
            counts[NO_ROOM] += 1
            continue
        for sample in range(settings.samples):
            seed = keyed_integer(settings.seed, "answer", number, sample)
            sampling = replace(settings.options.sampling, seed=seed)
            limit = min(settings.max_tokens, room)
            stops, adapter = settings.options.stops, settings.options.adapter
            requests.append(model.request(ids, limit, sampling, adapter, stops))
            asked.append(dialogue)
    if not requests:
        return
    length = max(len(request.prompt) + request.max_tokens for request in requests)
    engine = model.generator(min(len(requests), SLOTS), length)
    for dialogue, completion in zip(asked, engine.generate(requests), strict=True):
        text = _text(model, completion, settings.options.stops)
        if text is None or not text.strip():
            counts[UNFINISHED if text is None else EMPTY] += 1
            continue
        answer = {"role": "assistant", "content": text}
        line: dict[str, Any] = {"messages": [*dialogue.messages, answer]}
        yield line if dialogue.tools is None else {**line, "tools": dialogue.tools}


def _text(model: LanguageModel, completion: Completion, stops: Sequence[str]) -> str | None:
    """None if it did not end."""
    reply, ended = Reply(model.tokenizer, stops), completion.finish == "stop"
    kept = completion.tokens[:-1] if ended else completion.tokens
    text = "".join(map(reply.push, kept)) + reply.finish()
    return text if ended or reply.stopped else None
