"""A run resumes only from what it depended on: models, tokenizer, texts, questions, settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import weights_in
from test_bad_input import bytes_in, go

from culm.adapt.heads import with_scalar_head
from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.export import export
from culm.data.format.document import DocumentFormat
from culm.data.origin import change_in, origin_of
from culm.data.prepare import prepare
from culm.files import read_lines
from culm.run.reads import check_ranks, digest_of
from culm.run.settings import RunConfig
from culm.source import open_source
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.checkpoint.folder import steps_in
from culm.verbs.plan import show_plan

EVERY = {"every_steps": 2}


@pytest.fixture(autouse=True)
def quick_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the speed of this machine, which takes seconds."""
    monkeypatch.setattr("culm.verbs.plan_needs._rate", lambda *_: 1e9)


def plan(settings: dict[str, Any], **more: Any) -> None:
    show_plan(parse(RunConfig, {**settings, "train": {**settings["train"], **more}}), {})


def refused(settings: dict[str, Any], steps: int, match: str) -> None:
    """By a plan and by the run, in the same words; what the folder has stays as it is."""
    folder = Path(settings["folder"])
    before = bytes_in(folder)
    for start in (plan, go):
        with pytest.raises(SettingError, match=match):
            start(settings, steps=steps)
        if start is plan:
            assert bytes_in(folder) == before


@pytest.fixture
def base(stage: Callable[..., dict], tmp_path: Path) -> Path:
    """A copy of the base model, which a test may change."""
    shutil.copytree(Path(stage("sft")["start"]) / "model", tmp_path / "base")
    return tmp_path / "base"


def perturb(folder: Path) -> None:
    """Another model of the same shape."""
    model, tokenizer = native.load(folder)
    with torch.no_grad():
        model.embed.weight[3, 3] += 1e-3
    native.save(model, tokenizer, folder)


@pytest.mark.parametrize(
    ("name", "more"),
    [("sft", {"adapter": True}), ("dpo", {}), ("dpo", {"adapter": True}), ("ppo", {})],
    ids=["adapter", "reference", "reference under an adapter", "reference of ppo"],
)
def test_another_base_model(
    name: str, more: dict, stage: Callable[..., dict], base: Path, tmp_path: Path
) -> None:
    settings = {**stage(name, **more), "start": str(base), "folder": str(tmp_path / "run")}
    go(settings, steps=2)
    plan(settings, steps=4)
    perturb(base)
    before = bytes_in(tmp_path / "run" / "checkpoints"), bytes_in(tmp_path / "run" / "model")
    said = r"start=\S+base: not what \S+run was trained with \(SHA-256 \w+ then, \w+ now\); put"
    refused(settings, 4, said)
    assert before == (
        bytes_in(tmp_path / "run" / "checkpoints"), bytes_in(tmp_path / "run" / "model")
    )  # fmt: skip


def test_a_base_that_is_trained_in_full_is_in_the_checkpoint(
    stage: Callable[..., dict], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {**stage("sft"), "start": str(base)}
    go({**settings, "folder": str(tmp_path / "one")}, steps=4)
    two = {**settings, "folder": str(tmp_path / "two")}
    go(two, steps=2)
    perturb(base)
    for start in (plan, go):
        capsys.readouterr()
        start(two, steps=4)
        assert "base changed since" in " ".join(capsys.readouterr().err.split())
    one, other = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_another_reward_model(stage: Callable[..., dict], base: Path, tmp_path: Path) -> None:
    settings = {**stage("grpo"), "folder": str(tmp_path / "run")}
    model, tokenizer = native.load(base)
    with_scalar_head(model, 0)
    native.save(model, tokenizer, base)
    settings["train"]["reward"] = {"kind": "model", "path": str(base)}
    go(settings, steps=1)
    perturb(base)
    refused(settings, 2, r"train\.reward\.path=\S+base: not what")


def test_another_reward_function(stage: Callable[..., dict], tmp_path: Path) -> None:
    code = tmp_path / "my.py"
    code.write_text("def score(completion, answer): return float(answer in completion)")
    settings = {**stage("grpo"), "folder": str(tmp_path / "run")}
    reward = {"kind": "function", "path": str(code), "name": "score"}
    settings["train"]["reward"] = reward
    go(settings, steps=1)
    plan(settings, steps=2)
    code.write_text(code.read_text().replace("float", "-float"))
    refused(settings, 2, r"train\.reward\.path=\S+my\.py: not what")


def test_another_chat_template(stage: Callable[..., dict], base: Path, tmp_path: Path) -> None:
    settings = {**stage("grpo"), "start": str(base), "folder": str(tmp_path / "run")}
    go(settings, steps=1)
    model, tokenizer = native.load(base)
    tokenizer.template = f"{tokenizer.template} "
    native.save(model, tokenizer, base)
    refused(settings, 2, "tokenizer: not what")


def test_other_answers_to_the_same_questions(stage: Callable[..., dict], tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"What comes after {n}?", "answer": n + 1} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**stage("grpo"), "folder": str(tmp_path / "run")}
    settings["data"] = {"tasks": [{"kind": "prompts", "path": str(file)}]}
    go(settings, steps=1)
    plan(settings, steps=2)
    file.write_text(file.read_text().replace('"answer": 12', '"answer": 13'))
    refused(settings, 2, r"trained on other data, .*fingerprint \w+ then, \w+")


@pytest.fixture
def text(stage: Callable[..., dict], tmp_path: Path) -> dict[str, Any]:
    """A run over a text file of its own, which was stopped before its first checkpoint."""
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Old words, number {n}." for n in range(60)))
    settings = {**stage("pretrain"), "folder": str(tmp_path / "run")}
    settings["data"] = {"path": str(file), "split": "paragraphs"}
    settings["tokenizer"] = {"kind": "bpe", "vocabulary": 262}
    with pytest.raises(SettingError, match=r"train\.context: 1 leaves nothing"):
        go(settings, context=1)
    assert not steps_in(tmp_path / "run")
    return settings


def tokens_of(settings: dict[str, Any]) -> bytes:
    return (Path(settings["folder"]) / "data" / "train" / "tokens-00000.npy").read_bytes()


@pytest.mark.parametrize("kept", ["tokenizer and data", "tokenizer"])
def test_a_text_that_changed_before_the_first_checkpoint(
    kept: str, text: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As if the run had started now, also where only the tokenizer was ready."""
    if kept == "tokenizer":
        shutil.rmtree(tmp_path / "run" / "data")
    file = Path(text["data"]["path"])
    file.write_text(file.read_text().replace("Old", "New"))
    capsys.readouterr()
    go(text)
    said = " ".join(capsys.readouterr().err.split())
    assert "text.txt has other contents (SHA-256" in said
    assert "tokenizer and corpus are made again" in said
    go({**text, "folder": str(tmp_path / "again")})
    assert tokens_of(text) == tokens_of({"folder": str(tmp_path / "again")})


def test_a_text_that_changed_after_the_first_checkpoint(
    text: dict[str, Any], tmp_path: Path
) -> None:
    go(text, steps=2)
    file, before = Path(text["data"]["path"]), bytes_in(tmp_path / "run")
    old = file.read_text()
    file.write_text(old + "\n\nMore.")
    refused(text, 4, r"data\.path: \S+text\.txt had [\d,]+ bytes then and")
    assert bytes_in(tmp_path / "run") == before
    file.write_text(old)  # another time, the same contents
    assert go(text, steps=4).finished
    file.unlink()  # the corpus has all that the run needs
    assert go(text, steps=5).finished


def test_a_corpus_that_was_prepared_elsewhere(
    text: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It may be another one, or damaged; the files that it was made from may change."""
    go(text, steps=1)
    corpus = tmp_path / "corpus"
    shutil.copytree(tmp_path / "run" / "data", corpus)
    settings = {**text, "data": {"prepared": str(corpus)}, "folder": str(tmp_path / "other")}
    settings["tokenizer"] = None
    go(settings, steps=2)
    capsys.readouterr()
    plan(settings, steps=4)
    assert "Resumes after step 2 of 4." in capsys.readouterr().out
    file = Path(text["data"]["path"])
    file.write_text(file.read_text().replace("Old", "New"))
    plan(settings, steps=4)
    said = " ".join(capsys.readouterr().out.split())
    assert "text.txt has other contents (SHA-256" in said
    assert "the corpus has what was there then" in said
    assert go(settings, steps=3).finished
    shard = corpus / "train" / "tokens-00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(settings, 4, r"tokens-00000\.npy: changed since it was written")
    shutil.rmtree(corpus)
    prepare(
        open_source(file, split="paragraphs"), DocumentFormat(),
        Tokenizer.load(tmp_path / "run" / "tokenizer"), corpus, 0.0,
    )  # fmt: skip
    refused(settings, 4, "trained on other data, or in another order")


def test_files_that_come_and_go(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    origin = origin_of(open_source(tmp_path))
    assert change_in(origin, open_source(tmp_path)) is None
    (tmp_path / "c.txt").write_text("c")
    assert str(change_in(origin, open_source(tmp_path))).endswith("c.txt was not there then")
    (tmp_path / "c.txt").unlink()
    (tmp_path / "a.txt").unlink()
    assert str(change_in(origin, open_source(tmp_path))).endswith(
        "a.txt was there then and is gone"
    )


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_settings_that_are_lost_are_in_the_checkpoint(
    damage: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    go(settings, steps=2)
    file = tmp_path / "run" / "run.yaml"
    before = file.read_text()
    if damage == "gone":
        file.unlink()
    else:
        file.write_text("")
    with pytest.raises(SettingError, match=r"seed: 3, but .* was trained with 0"):
        go({**settings, "seed": 3})
    assert go(settings, steps=2).finished
    assert file.read_text() == before


def test_ranks_that_read_different_models() -> None:
    class Others:
        rank, count = 0, 2

        def everyone(self, value: dict) -> list[dict]:
            return [value, {"start=base": "b" * 64}]

    with pytest.raises(SettingError, match="start=base: rank 1 reads other contents than rank 0"):
        check_ranks({"start=base": "a" * 64}, Others())  # type: ignore[arg-type]


def rates(folder: Path) -> list[float]:
    return [line["rate"] for line in read_lines(folder / "metrics.jsonl")]


def test_a_rate_that_jumps_is_mentioned_and_can_stay(
    stage: Callable[..., dict], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = stage("sft", schedule={"kind": "cosine", "final": 0.05})
    for name in ("jumps", "stays", "same"):
        go({**settings, "folder": str(tmp_path / name)}, steps=10)
    last = rates(tmp_path / "jumps")[-1]
    capsys.readouterr()
    go({**settings, "folder": str(tmp_path / "same")}, steps=10)
    assert "learning rate" not in capsys.readouterr().err
    go({**settings, "folder": str(tmp_path / "jumps")}, steps=20)
    said = " ".join(capsys.readouterr().err.split())
    assert "The learning rate of step 11 is" in said
    assert "(train.steps changed)" in said
    advice = dict(word.split("=", 1) for word in said.split() if word.startswith("train."))
    rate = float(advice["train.optimizer.rate"])
    assert advice["train.schedule"] == "constant."
    optimizer = {**settings["train"]["optimizer"], "rate": rate}
    stays = {**settings, "folder": str(tmp_path / "stays")}
    go(stays, steps=20, optimizer=optimizer, schedule="constant")
    assert rates(tmp_path / "stays")[10:] == pytest.approx([last] * 10, rel=0.01)


def test_the_digest_of_a_model_is_that_of_its_files(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Whatever the folder is; of an adapter with the base that it names."""
    settings = {**stage("sft", adapter=True), "folder": str(tmp_path / "run")}
    base = tmp_path / "hf"
    export(settings["start"], base, "float32")
    settings["start"] = str(base)
    go(settings, steps=1)
    adapter = str(tmp_path / "run" / "adapter")
    digests = [digest_of(path) for path in (adapter, str(base), str(tmp_path / "run"))]
    assert len(set(digests)) == 3
    assert digest_of(str(tmp_path / "run" / "model")) == digests[2]
    (base / "README.md").write_text("Other words.")
    assert digest_of(adapter) == digests[0]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert digest_of(adapter) != digests[0]
    assert digest_of(str(base)) != digests[1]
