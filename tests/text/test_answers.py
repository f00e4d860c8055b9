"""Answers to the prompts of a file: as of a chat, continued exactly, ready to train on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stages import weights_in
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError, parse
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.seed import keyed_integer
from culm.source import open_source
from culm.text import answers
from culm.text.answers import NO_ROOM, UNFINISHED, Answering, progress_file, write_answers
from culm.text.language_model import LanguageModel
from culm.text.options import read_options
from culm.text.reply import Reply
from culm.verbs.generate import write_continuation

Stage = Callable[..., dict]


def options(**more):
    return read_options(more, 0.0)  # type: ignore[arg-type]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """In all shapes; one is too long for any answer."""
    path = tmp_path / "prompts.jsonl"
    records = [{"prompt": f"say {n}"} for n in range(7)]
    records += [
        {"instruction": "add", "input": "1 + 2"},
        {"messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "the old answer"},
        ]},
        {"prompt": "x" * 500},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write(
    model: LanguageModel, prompts: Path, out: Path, settings: Answering, digest: str = "one"
) -> list[str]:
    return write_answers(model, open_source(str(prompts)), out, settings, {"model": digest})


def test_each_answer_is_that_of_a_chat(
    model: LanguageModel, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model does not end its turn; here every text counts as ended."""
    monkeypatch.setattr(answers, "_text", _unended)
    out = tmp_path / "answers.jsonl"
    settings = Answering(options(temperature=1.0), max_tokens=12, seed=2)
    assert f"1 {NO_ROOM}." in write(model, prompts, out, settings)
    written = lines_of(out)
    assert len(written) == 9
    for number, line in enumerate(written):
        *question, answer = line["messages"]
        seed = keyed_integer(2, "answer", number, 0)
        found = model.chat(question, max_tokens=12, temperature=1.0, seed=seed)
        assert answer["content"] == found
    assert [m["role"] for m in written[-1]["messages"]] == ["system", "user", "assistant"]
    assert "the old answer" not in out.read_text()


def _unended(model, completion, stops) -> str:
    reply, ended = Reply(model.tokenizer, stops), completion.finish == "stop"
    kept = completion.tokens[:-1] if ended else completion.tokens
    return "".join(map(reply.push, kept)) + reply.finish()


def test_what_did_not_end_is_left_out_and_counted(
    model: LanguageModel, prompts: Path, tmp_path: Path
) -> None:
    remarks = write(model, prompts, tmp_path / "a.jsonl", Answering(options(), max_tokens=2))
    assert any(remark.endswith(f"{UNFINISHED}.") for remark in remarks)
    counts = [int(remark.split()[0]) for remark in remarks]
    assert sum(counts) + len(lines_of(tmp_path / "a.jsonl")) == 10


def test_it_continues_with_the_same_text(
    model: LanguageModel, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second block, half a line of which was written."""
    monkeypatch.setattr(answers, "_text", _unended)
    monkeypatch.setattr(answers, "BLOCK", 6)
    settings = Answering(options(temperature=1.0), samples=2, max_tokens=6, seed=4)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    remarks = write(model, prompts, one, settings)
    finish, calls = answers._answers, []

    def stop(*given):
        calls.append(given)
        if len(calls) == 2:
            yield {"messages": ["half"]}
            raise KeyboardInterrupt
        yield from finish(*given)

    with monkeypatch.context() as patch:
        patch.setattr(answers, "_answers", stop)
        with pytest.raises(KeyboardInterrupt):
            write(model, prompts, two, settings)
    assert json.loads(progress_file(two).read_text())["prompts"] == 3
    assert write(model, prompts, two, settings) == remarks
    assert two.read_text() == one.read_text()
    texts = [line["messages"][-1]["content"] for line in lines_of(one)]
    assert len(set(texts)) > len(texts) / 2  # samples differ
    write(model, prompts, one, settings)
    assert two.read_text() == one.read_text()
    three = tmp_path / "three.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_answers", stop)
        calls[:] = [()]  # in the first block
        with pytest.raises(KeyboardInterrupt):
            write(model, prompts, three, settings)
    assert three.stat().st_size
    write(model, prompts, three, settings)
    assert three.read_text() == one.read_text()
    three.write_bytes(three.read_bytes()[:-9])
    with pytest.raises(SettingError, match=r"bytes where .* were written, so it cannot be contin"):
        write(model, prompts, three, settings)


def test_an_older_file_goes_only_once_the_prompts_can_be_read(
    model: LanguageModel, prompts: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "a.jsonl", Answering(options(), max_tokens=2)
    out.write_text("{}\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "no question"}\n')
    with pytest.raises(SettingError, match="no prompt in it"):
        write_answers(model, open_source(str(bad)), out, settings, {}, overwrite=True)
    assert out.read_text() == "{}\n"
    remarks = write_answers(model, open_source(str(prompts)), out, settings, {}, overwrite=True)
    assert remarks
    assert out.read_text() != "{}\n"


def test_other_settings_and_other_files_are_refused(
    model: LanguageModel, prompts: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "a.jsonl", Answering(options(), max_tokens=2)
    write(model, prompts, out, settings)
    longer = Answering(options(), max_tokens=3)
    for digest, other in (("two", settings), ("one", longer)):
        with pytest.raises(SettingError, match=r"was written with another (model|max_tokens)"):
            write(model, prompts, out, other, digest)
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    with pytest.raises(SettingError, match="already exists; choose another name"):
        write(model, prompts, mine, settings)
    assert mine.read_text() == "{}\n"
    with pytest.raises(SettingError, match="2 answers at temperature 0 would all be the same"):
        Answering(options(), samples=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PROMPT: give a text to continue, or --prompts"),
        (["hi", "--prompts", "x"], "PROMPT: give a text to continue, or --prompts"),
        (["--prompts", "x"], "--out: name the file"),
        (["hi", "--samples", "2"], "have an effect with --prompts only"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["generate", "nowhere", *arguments])
    assert message in str(result.exception)


def test_a_student_learns_from_the_file_as_it_is(stage: Stage, tmp_path: Path) -> None:
    """By the command; the trained model of the tests ends its answers."""
    settings = stage("sft", steps=1)
    path, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    asked = [{"prompt": f"How many a are in {'ab' * n}?"} for n in range(1, 5)]
    path.write_text("".join(json.dumps(one) + "\n" for one in asked))
    given = ["generate", settings["start"], "--prompts", str(path), "--out", str(out)]
    more = ["--samples", "3", "--temperature", "1", "--seed", "1", "--max-tokens", "20"]
    result = CliRunner().invoke(app, [*given, *more, "--device", "cpu"])
    assert result.exception is None, result.output
    assert f"{out}: {len(lines_of(out))} dialogues" in result.output
    assert len(lines_of(out)) > 2
    settings["data"] = {"path": str(out), "format": "chat", "held_out": 0}
    settings["eval"] = {"measures": {}}
    train(parse(RunConfig, {**settings, "folder": str(tmp_path / "run")}))
    assert weights_in(tmp_path / "run")
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"] > 0


def test_a_text_that_ends_at_once_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    class Ended:
        def stream(self, prompt: str, max_tokens: int) -> Iterator[str]:
            return iter(())

    write_continuation(Ended(), "A fox", 3)
    said = capsys.readouterr()
    assert said.out == "A fox\n"
    assert "ended the text at once" in said.err
