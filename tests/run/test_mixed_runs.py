"""Runs that mix corpora, among them text of an earlier stage with dialogues."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stages import weights_in

from culm.config import SettingError, parse
from culm.data.manifest import Manifest
from culm.data.mixture import Mixture
from culm.files import read_lines
from culm.parallel.ranks import Ranks
from culm.run.assemble import assemble, training_batches
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.plan import show_plan


class Alone(Ranks):
    """One of several ranks, without the others."""

    def wait(self) -> None: ...


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, stage: Callable[..., dict]) -> Path:
    """The corpus of a run on text."""
    folder = tmp_path_factory.mktemp("text") / "run"
    train(parse(RunConfig, {**stage("pretrain", steps=1), "folder": str(folder)}))
    return folder / "data"


def settings(stage, text: Path, folder: Path, weight=0.25, entry=None, **more) -> RunConfig:
    """Dialogues with a share of text."""
    run = stage("sft", batch_size=8, **more)
    words = {"corpus": str(text), "weight": weight, **(entry or {})}
    run["data"]["mix"] = [{"weight": 0.75}, words]
    return parse(RunConfig, {**run, "folder": str(folder)})


def batches(config: RunConfig, ranks: Ranks = Ranks()) -> Mixture:
    folder = Path(config.folder)
    folder.mkdir(exist_ok=True)
    found = training_batches(assemble(config, folder, CPU, ranks))
    assert isinstance(found, Mixture)
    return found


def test_each_step_has_its_share_of_text(stage, text: Path, tmp_path: Path) -> None:
    mixed = batches(settings(stage, text, tmp_path / "run", steps=3))
    for number in (0, 1, 5):
        assert [len(part.tokens) for part in mixed.step(number)] == [2, 2, 2, 2]
        assert sorted(corpus for corpus, _ in mixed.places(number)) == [0] * 6 + [1] * 2


def test_ranks_divide_both(stage, text: Path, tmp_path: Path) -> None:
    config = settings(stage, text, tmp_path / "run", weight=0.4, steps=3)
    whole = batches(config)

    def rows(parts) -> list[list[int]]:
        return sorted(row for part in parts for row in part.tokens.tolist())

    shares = [batches(config, Alone(rank, 4, writer=False)) for rank in range(4)]
    for number in range(3):
        parts = [part for share in shares for part in share.step(number)]
        assert rows(parts) == rows(whole.step(number))
    assert {share.fingerprint for share in shares} == {whole.fingerprint}


def test_text_may_come_late(stage, text: Path, tmp_path: Path) -> None:
    late = {"points": {0: 0, 2: 0.25}}
    mixed = batches(settings(stage, text, tmp_path / "run", weight=late, steps=3))
    counts = [sum(corpus for corpus, _ in mixed.places(number)) for number in range(4)]
    assert counts == [0, 0, 2, 2]


def test_what_cannot_be_mixed_is_refused(stage, text: Path, tmp_path: Path) -> None:
    late = {"points": {0: 0, 3: 0.25}}
    with pytest.raises(SettingError, match=r"data\.mix\[1\]: .* has no row in train\.steps=3"):
        train(settings(stage, text, tmp_path / "late", weight=late, steps=3))
    run = stage("dpo")
    run["data"]["mix"] = [{"weight": 1}, {"corpus": str(text), "weight": 1}]
    with pytest.raises(SettingError, match=r"data\.mix: preference learns from pairs"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "dpo")})
    run = stage("sft")
    own = str(tmp_path / "x" / ".." / "run" / "data")
    run["data"]["mix"] = [{"weight": 1}, {"corpus": own, "weight": 1}]
    with pytest.raises(SettingError, match=r"data\.mix: .* is the run's own"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "run")})


def test_a_plan_shows_tokens_share_and_epochs(stage, text: Path, tmp_path: Path, capsys) -> None:
    late = {"points": {0: 0, 20: 0.75}}
    config = settings(stage, text, tmp_path / "run", weight=late, steps=40)
    show_plan(config, {})
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"this run's own text: [\d,]+ tokens, 75\.0 % of the rows, [\d.]+ epochs", shown
    )
    found = re.search(rf"{text}: ([\d,]+) tokens, 25\.0 % of the rows, ([\d.]+) epochs", shown)
    assert found is not None
    rows = batches(config).corpora[1]
    assert float(found[2]) == pytest.approx(80 / rows.rows, abs=0.01)
    tokens = int(found[1].replace(",", ""))
    held = Manifest.read(text).splits["train"].tokens
    assert tokens == pytest.approx(80 / rows.rows * held, rel=0.2)  # windows overlap in a token
    assert f"{text}: weight 0 at step 0, then 0.75 at step 20" in shown


def test_more_epochs_than_allowed_are_refused(stage, text: Path, tmp_path: Path, capsys) -> None:
    config = settings(stage, text, tmp_path / "run", entry={"max_epochs": 0.5}, steps=40)
    message = r"data\.mix\[1\]\.max_epochs: .* would be read [\d.]+ times in train\.steps=40, more"
    for start in (lambda: show_plan(config, {}), lambda: train(config)):
        with pytest.raises(SettingError, match=message):
            start()
    few = config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})})
    show_plan(few, {})
    assert "No problem found" in capsys.readouterr().out


def test_a_plan_refuses_what_a_run_would(stage, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(text, other)
    manifest = Manifest.read(other)
    changed = manifest.model_copy(update={"tokenizer": "another"})
    (other / "manifest.json").write_text(changed.model_dump_json())
    for corpus, message in (
        (tmp_path / "none", r"data\.mix\[1\]\.corpus: .*none: not a prepared corpus"),
        (other, r"data\.mix\[1\]\.corpus: .*other: prepared with another tokenizer"),
    ):
        config = settings(stage, corpus, tmp_path / "run", steps=1)
        for start in (lambda config=config: show_plan(config, {}), lambda c=config: train(c)):
            with pytest.raises(SettingError, match=message):
                start()


def test_prepared_corpora_alone(stage, text: Path, tmp_path: Path) -> None:
    """Shares go with their sizes; the tokenizer and the held-out text are those of the first."""
    words = tmp_path / "words.jsonl"
    words.write_text("".join(json.dumps({"text": f"other words {n}"}) + "\n" for n in range(300)))
    first = stage("pretrain", steps=1)
    first["data"] = {"path": str(words)}
    train(parse(RunConfig, {**first, "folder": str(tmp_path / "first")}))
    other = tmp_path / "first" / "data"
    run = stage("pretrain", steps=4, batch_size=8)
    run["data"] = {"mix": [{"corpus": str(text), "epochs": 2}, {"corpus": str(other)}]}
    run.pop("tokenizer")
    config = parse(RunConfig, {**run, "folder": str(tmp_path / "run")})
    mixed = batches(config)
    small, large = mixed.corpora
    wanted = 2 * small.rows / (2 * small.rows + large.rows)
    assert mixed.apportionment.shares(0)[0] == pytest.approx(wanted)
    show_plan(config, {})
    result = train(config)
    assert result.finished
    assert not (tmp_path / "run" / "data").exists()
    assert result.results["bits_per_byte"] > 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert Manifest.read(text).source in card
    assert Manifest.read(other).source in card


def test_a_run_resumes_exactly_and_refuses_other_text(stage, text: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, corpus: Path = text, **more):
        more |= {"steps": steps, "checkpoint": {"every_steps": 2}}
        return train(settings(stage, corpus, folder, weight={"points": {0: 0.1, 4: 2}}, **more))

    run(tmp_path / "one", 6)
    run(tmp_path / "two", 2)
    run(tmp_path / "two", 6)
    one, two = (weights_in(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["share_1"] < lines[5]["share_1"]
    changed = tmp_path / "changed"
    shutil.copytree(text, changed)
    with pytest.raises(SettingError, match=r"data\.mix: .*give a new run another"):
        run(tmp_path / "two", 8, changed)
    more = {"steps": 8, "weight": {"points": {0: 0.1, 4: 2}}}
    config = settings(stage, text, tmp_path / "two", **more)
    show_plan(config, {})
    shutil.rmtree(text)  # prepared again, from other text
    own = settings(stage, text, tmp_path / "other", **more)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"other words {n}"}) + "\n" for n in range(300)))
    train(parse(RunConfig, {
        **own.model_dump(mode="json"), "data": {"path": str(other)},
        "train": {**own.train.model_dump(mode="json"), "steps": 1},
    }))  # fmt: skip
    shutil.copytree(tmp_path / "other" / "data", text)
    for start in (lambda run: show_plan(run, {}), train):
        with pytest.raises(SettingError, match="trained on other data, or in another order"):
            start(config)
