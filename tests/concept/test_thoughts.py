"""Continuous thoughts: passes over a cache, gradients, the curriculum, and the engine."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import Given, fit

from culm.batch import IGNORED, Batch
from culm.concept.thoughts import thinking_states, thoughts
from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.export import export
from culm.data.format.thoughts import ThoughtsFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.tasks import TaskSource
from culm.engine.engine import Engine
from culm.engine.request import Completion, Request
from culm.engine.sampling import Sampling
from culm.eval.measure.measure import Subject
from culm.eval.measure.thoughts import Thoughts
from culm.files import read_lines
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.coconut import Coconut, CoconutObjective, staged
from culm.objective.next_token import NextToken
from culm.run.settings import RunConfig, read_run
from culm.run.train import Result, train
from culm.source import open_source
from culm.task.graph import Graph
from culm.text.load import load
from culm.tokenizer.bytes import Bytes
from culm.train.checkpoint.tensors import places
from culm.train.events import Event, Stepped
from culm.train.listeners import MetricsFile

TOKENIZER = Bytes().build([])
VOCABULARY = TOKENIZER.vocabulary + 3


def model_of(seed: int = 0) -> Transformer:
    attention = (GQA(heads=2, qk_norm="head"),)
    config = TransformerConfig(
        vocabulary=VOCABULARY, width=16, layers=2, context=200, attention=attention
    )
    model = config.build(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Four questions with their steps, as the loader gives them."""
    folder = tmp_path_factory.mktemp("graph")
    source = TaskSource([Graph(nodes=10, hops=(1, 4))], 12, 1, 0)
    prepare(source, ThoughtsFormat(), TOKENIZER, folder / "p", held_out=0)
    loader = Loader(Prepared.open(folder / "p"), 128, 4, 4, seed=0)
    [batch] = loader.step(0)
    return batch


def test_rows_without_their_end_are_not_learned(tmp_path: Path) -> None:
    """Their last step would be taken for the answer."""
    path, part = tmp_path / "t.jsonl", {"question": "Is A a B?", "steps": ["A is a B."]}
    texts = [{**part, "answer": "yes" * n} for n in (1, 2, 9)]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    prepare(open_source(str(path)), ThoughtsFormat(), TOKENIZER, tmp_path / "p", held_out=0)
    whole = [f"Is A a B?\nA is a B.\n{text['answer']}\n\0" for text in texts]
    lengths = list(map(len, whole))
    prepared = Prepared.open(tmp_path / "p")
    assert sorted(np.diff(prepared.offsets).tolist()) == lengths
    loader = Loader(prepared, lengths[1], 2, 2, seed=0)
    assert loader.rows == 2
    assert loader.truncated == 0
    assert (
        f"1 of 3 documents do not end within {lengths[1]} tokens and are left out."
        in loader.remarks
    )
    batch = staged(loader.step(0)[0], Coconut(), 0, VOCABULARY)
    learned = [row[row != IGNORED].tolist() for row in batch.targets]
    assert sorted(map(TOKENIZER.decode, learned)) == [
        f"A is a B.\n{said}\n\0" for said in ("yes", "yesyes")
    ]
    with pytest.raises(SettingError, match=r"use a longer train\.context"):
        Loader(prepared, lengths[0] - 1, 2, 2, seed=0)


def naive(model: Transformer, batch: Batch, first: int, count: int) -> torch.Tensor:
    """Every pass reads the whole rows again."""
    shape = batch.tokens.shape
    given, vectors = torch.zeros(shape, dtype=torch.bool), torch.zeros(*shape, 16)
    for latent in range(count + 1):
        context = Context(batch.positions, batch.documents, embeddings=(given, vectors))
        states = model.hidden(batch.tokens, context)
        if latent == count:
            return states
        column = first + latent
        given, vectors = given.clone(), vectors.clone()
        given[:, column] = True
        vectors[:, column] = states[:, column - 1]
    raise AssertionError


@pytest.mark.parametrize("stage", [0, 1, 3, 4])
def test_passes_over_a_cache_are_passes_over_all(rows: Batch, stage: int) -> None:
    """States where something is learned, and the gradient of every weight."""
    config, model = Coconut(stages=4), model_of()
    batch = staged(rows, config, stage, VOCABULARY)
    assert (batch.extra["count"] == stage).all()
    first, learned = int(batch.extra["first"][0]), batch.targets != IGNORED
    gradients = []
    for states in (
        thinking_states(model, batch.tokens, _context(batch), first, stage),
        naive(model, batch, first, stage),
    ):
        model.zero_grad()
        (-model.hidden_logprobs(states, batch.targets).sum()).backward()
        gradients.append([states[learned], *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def _context(batch: Batch) -> Context:
    return Context(batch.positions, batch.documents, padding=batch.extra["padding"])


def test_without_latents_it_is_next_token(rows: Batch) -> None:
    model = model_of()
    for config, stage in (
        (Coconut(), 0),
        (Coconut(thoughts="words"), 0),
        (Coconut(thoughts="none"), 0),
    ):
        batch = staged(rows, config, stage, VOCABULARY)
        own = CoconutObjective(config, model)(batch)
        other = NextToken().build(model, lambda *_: model, 0)(batch)
        assert torch.equal(own.mean(batch.counts), other.mean(batch.counts))


@pytest.mark.parametrize(("thoughts_", "stage"), [("latent", 0), ("pause", 2), ("words", 0)])
def test_questions_of_any_length_are_one_document_for_every_backend(
    tmp_path: Path, thoughts_: str, stage: int
) -> None:
    """A document is a run of neighbours: nothing may stand between a question and its answer."""
    answers = {"steps": ["one step.", "another."], "answer": "yes it is"}
    records = [{"question": "Is it so? " * times, **answers} for times in (1, 3, 7, 4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    prepared = tmp_path / "p"
    prepare(
        open_source(str(tmp_path / "t.jsonl")), ThoughtsFormat(), TOKENIZER, prepared, held_out=0
    )
    [rows] = Loader(Prepared.open(prepared), 128, 4, 4, seed=0).step(0)
    batch = staged(rows, Coconut(stages=4, thoughts=thoughts_), stage, VOCABULARY)
    assert batch.documents is not None
    assert len({int((row == 0).sum()) for row in batch.documents}) > 1
    for row in batch.documents:
        assert (row == 0).nonzero()[:, 0].diff().unique().tolist() == [1]
    model, found = model_of(), []
    for dtype, backend in ((torch.float32, "blocks"), (torch.bfloat16, "flash_cpu")):
        model.dtype = dtype
        try:
            model.set_backend(backend)
            states = thinking_states(model, batch.tokens, _context(batch), 0, 0)
        except OSError as error:
            pytest.skip(str(error))
        found.append(float(-model.hidden_logprobs(states, batch.targets).sum().detach()))
    assert found[1] == pytest.approx(found[0], rel=5e-4)


def test_gradients_reach_the_question_through_thoughts_alone(rows: Batch) -> None:
    """Were the question hidden from what follows, its embeddings would still learn from thoughts:
    the gradient by way of the last latent is there.
    """
    model = model_of()
    question = torch.tensor([[65, 66, 67, VOCABULARY - 3, 0, 0, VOCABULARY - 1, 68]])
    inputs = model.embed(question[:, :3]).detach().requires_grad_()
    given = torch.arange(8)[None] < 3
    vectors = torch.cat((inputs, torch.zeros(1, 5, 16)), 1)
    states = []

    def read(start: int, end: int, last: torch.Tensor | None, documents: torch.Tensor) -> None:
        mask, rows = given[:, start:end], vectors[:, start:end]
        if last is not None:
            mask, rows = torch.ones_like(mask), last
        context = Context(torch.arange(start, end)[None], documents, embeddings=(mask, rows))
        states.append(model.hidden(question[:, start:end], context))

    read(0, 4, None, torch.zeros(1, 4))
    read(4, 5, states[-1][:, -1:], torch.zeros(1, 1))  # it attends to itself alone
    states[-1].sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad.abs().sum(-1) > 0).all()


def test_rows_of_each_stage(rows: Batch) -> None:
    config = Coconut(stages=2, latents_per_step=2)
    bot, pause, eot = (VOCABULARY - n for n in (3, 2, 1))
    for stage in range(3):
        batch = staged(rows, config, stage, VOCABULARY)
        for row in range(4):
            real = ~batch.extra["padding"][row]
            tokens, targets = batch.tokens[row][real].tolist(), batch.targets[row][real].tolist()
            assert batch.positions[row][real].tolist() == list(range(len(tokens)))
            start, end = tokens.index(bot), tokens.index(eot)
            assert tokens[start + 1 : end] == [pause] * (2 * stage)
            assert batch.extra["first"][row] == batch.tokens[row].tolist().index(bot) + 1
            assert targets[:end] == [IGNORED] * end
            assert targets[end:-1] == tokens[end + 1 :]
            whole = TOKENIZER.decode(rows.tokens[row][: rows.lengths[row] - 1].tolist())
            question, *steps, answer = whole.splitlines()
            left = [] if stage == 2 else steps[stage:]
            assert TOKENIZER.decode(tokens[end + 1 : -1]).splitlines() == [*left, answer]
            assert TOKENIZER.decode(tokens[:start]).strip() == question


def test_the_curriculum_moves_and_a_checkpoint_holds_its_clock(rows: Batch) -> None:
    config = Coconut(stages=2, stage_steps=2)
    objective = CoconutObjective(config, model_of())

    def batches(step: int) -> list[Batch]:
        return [rows]

    optimizer = torch.optim.SGD(objective.model.parameters(), lr=1e-3)
    steps = fit(objective, Given(batches), 6, optimizer)
    assert [one.metrics["stage"] for one in steps] == [0, 0, 1, 1, 2, 2]
    assert int(objective.clock.steps) == 6
    assert places(objective)["buffer.clock.steps"] is objective.clock.steps


def test_a_resumed_run_goes_on_in_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path) -> Result:
        return train(parse(RunConfig, {
            "folder": str(folder), "device": "cpu", "tokenizer": "bytes",
            "model": {
                "vocabulary": 260, "width": 32, "layers": 1, "context": 256,
                "attention": {"kind": "gqa", "heads": 2},
            },
            "data": {
                "format": "thoughts", "held_out": 0, "questions": 50,
                "tasks": [{"kind": "graph", "nodes": 6, "hops": [2, 2]}],
            },
            "train": {
                "steps": 6, "batch_size": 2, "checkpoint": {"every_steps": 1},
                "objective": {"kind": "coconut", "stages": 2, "stage_steps": 2},
            },
        }))  # fmt: skip

    write = MetricsFile.__call__

    def write_and_ask(self: MetricsFile, event: Event) -> None:
        write(self, event)
        if isinstance(event, Stepped) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "__call__", write_and_ask)
        assert not run(tmp_path / "part").finished
    assert run(tmp_path / "part").finished
    load(tmp_path / "whole")
    export(tmp_path / "whole", tmp_path / "out", "float32")
    assert capsys.readouterr().err.count("learned to answer after continuous thoughts") == 2
    assert "continuous thoughts" in (tmp_path / "out" / "README.md").read_text()
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "part")]
    assert [one["stage"] for one in lines[0]] == [0, 0, 1, 1, 2, 2]
    assert [(one["stage"], one["loss"]) for one in lines[1]] == [
        (one["stage"], one["loss"]) for one in lines[0]
    ]


@pytest.mark.parametrize(("reset", "updates"), [(True, 1), (False, 5)])
def test_the_optimizer_is_reset_at_each_stage(rows: Batch, reset: bool, updates: int) -> None:
    """Steps 0 and 1, 2 and 3, and 4 are three stages."""
    config = Coconut(stages=2, stage_steps=2, reset_optimizer=reset)
    objective = CoconutObjective(config, model_of())
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-3)
    fit(objective, Given(lambda step: [rows]), 5, optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {updates}


def test_the_engine_answers_after_thoughts(rows: Batch) -> None:
    """As the whole row with all thoughts gives it."""
    model = model_of().eval()
    question = [65, 66, 67, VOCABULARY - 3]
    found = thoughts(model, torch.tensor(question), 3)
    prompt = (*question, *[VOCABULARY - 2] * 3, VOCABULARY - 1)
    request = Request(
        prompt, 5, Sampling(temperature=0.0), embeddings=tuple(enumerate(found, len(question)))
    )
    [done] = Engine(model, 1).generate([request])
    row = torch.tensor([[*prompt, *done.tokens]])
    with torch.no_grad():
        states = thinking_states(model, row, Context.plain(row), 4, 3)
        logits = model.logits(states)[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == list(done.tokens)


def test_the_measure_counts_right_answers_and_their_tokens(monkeypatch) -> None:
    """The first of two questions is answered right. Its end, byte 0, is no part of the answer."""
    questions = [Graph().question("test", number, 0) for number in range(2)]
    said = [f"{questions[0].answer}\n", "?\n"]

    class Answers:
        def __init__(self, *given: object, **settings: object) -> None:
            assert settings["suppressed"] == [VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1]

        def generate(self, requests: list[Request]) -> list[Completion]:
            rows = [(*TOKENIZER.encode(text), TOKENIZER.end_of_text) for text in said]
            assert all(TOKENIZER.end_of_text in request.stop for request in requests)
            return [Completion(row, (), "stop") for row in rows]

    monkeypatch.setattr("culm.eval.measure.thoughts.Engine", Answers)
    subject = Subject(model_of().eval(), TOKENIZER)
    found = Thoughts(questions=2, latents=3).measure(subject)
    assert found["accuracy"] == 0.5
    assert found["answer_tokens"] == 3 + 3  # latents; a byte, a line break and the end


@given(st.integers(0, 400), st.sampled_from(["train", "test"]))
@settings(max_examples=30, deadline=None)
def test_a_walk_leads_to_the_answer_and_to_no_other(index: int, split) -> None:
    question = Graph().question(split, index, 3)
    edges, asked = question.prompt.split(". ")
    root, candidates = asked.rstrip("?").split(": ")
    following = {
        edge: [b for a, b in edges.split() if a == edge] for edge in "abcdefghijklmnopqrstuvwxyz"
    }
    reached, left = set(), [root]
    while left:
        node = left.pop()
        assert node not in reached  # a tree
        reached.add(node)
        left += following[node]
    one, other = candidates.split(" or ")
    assert question.answer in (one, other)
    assert {one, other} & reached == {question.answer}
    assert not following[one]
    assert not following[other]
    steps = question.working.split("; ")
    assert set(steps) <= set(edges.split())
    assert [steps[0][0], steps[-1][1]] == [root, question.answer]
    assert Graph().score(question, question.reply) == 1
    assert Graph().score(question, f"xy\n{question.answer}\n") == 1
    assert Graph().score(question, other if one == question.answer else one) == 0
    assert Graph().score(question, "") == 0


def test_the_fields_of_records_count_as_used(tmp_path: Path) -> None:
    record = {"question": "Is A a B?", "steps": ["A is a B."], "answer": "Yes.", "other": 1}
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    source = open_source(str(tmp_path / "p.jsonl"))
    prepare(source, ThoughtsFormat(), TOKENIZER, tmp_path / "p", held_out=0)
    assert Prepared.open(tmp_path / "p").manifest.notes == {
        "records have the key 'other', which is not used": 1
    }


def test_prosqa_records_are_read(tmp_path: Path) -> None:
    record = {"question": "Is Tom a lempus?", "steps": ["Tom is a terpus."], "answer": "Yes."}
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    [read] = list(open_source(str(tmp_path / "p.jsonl")))
    [dialogue] = ThoughtsFormat().contents(dict(read))
    assert [one["content"] for one in dialogue.messages] == [
        "Is Tom a lempus?", "Tom is a terpus.", "Yes.",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no question in 'question', list of steps"):
        list(ThoughtsFormat().contents({"question": "x", "answer": "y"}))


def test_a_vocabulary_without_rows_for_thoughts_is_refused(tmp_path: Path) -> None:
    """Before the first step, though no text may have the bytes 253 to 255; of a start too."""
    small = (
        "device=cpu", "train.steps=1", "train.batch_size=2", "eval.measures={}", "model.width=32",
        "model.layers=1", "data.questions=20",
    )  # fmt: skip
    config, _ = read_run("coconut", [f"folder={tmp_path / 'a'}", "model.vocabulary=256", *small])
    with pytest.raises(SettingError, match=r"256 tokens and coconut 3 of its own; .* 259 rows"):
        train(config)
    for words in (["tokenizer=bpe"], ["tokenizer=null"]):  # those that are trained leave them free
        config, _ = read_run("coconut", [*words, "model.vocabulary=300"])
        assert config.new_tokenizer.vocabulary == 297
    plain = TransformerConfig(
        vocabulary=257, width=16, layers=1, context=256, attention=(GQA(heads=2),)
    ).build(0)  # fmt: skip
    native.save(plain, TOKENIZER, tmp_path / "plain")
    words = [f"folder={tmp_path / 'b'}", f"start={tmp_path / 'plain'}", "model=null", *small[:4]]
    with pytest.raises(SettingError, match="a run that has a start uses its tokenizer"):
        read_run("coconut", words)
    with pytest.raises(SettingError, match="257 rows are too few"):
        train(read_run("coconut", [*words, "tokenizer=null"])[0])
    with pytest.raises(SettingError, match="thoughts measures models of culm train coconut"):
        Thoughts().measure(Subject(plain, TOKENIZER))


def test_wrong_settings_say_what_is_wrong(rows: Batch) -> None:
    with pytest.raises(SettingError, match=r"model\.vocabulary: its last 3 rows are for thoughts"):
        staged(rows, Coconut(), 0, 100)
    windowed = TransformerConfig(
        vocabulary=VOCABULARY, width=16, layers=1, attention=(GQA(heads=2, window=4),)
    ).build(0)
    with pytest.raises(SettingError, match="grouped-query attention without a window"):
        Coconut().build(windowed, lambda *_: windowed, 0)
    with pytest.raises(SettingError, match="nodes: 8 are too few for two paths of 4 hops"):
        parse(Graph, {"nodes": 8})
