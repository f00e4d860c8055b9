"""Text of an earlier stage beside dialogues."""

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
from culm.data.replay import Replay, Replayed
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


def settings(stage: Callable[..., dict], text: Path, folder: Path, **more) -> RunConfig:
    run = stage("sft", batch_size=8, **more)
    run["data"]["replay"] = {"corpus": str(text), "share": 0.25}
    return parse(RunConfig, {**run, "folder": str(folder)})


def batches(config: RunConfig, ranks: Ranks = Ranks()) -> Replayed:
    folder = Path(config.folder)
    folder.mkdir(exist_ok=True)
    found = training_batches(assemble(config, folder, CPU, ranks))
    assert isinstance(found, Replayed)
    return found


def test_each_step_has_its_share_of_text(stage, text: Path, tmp_path: Path) -> None:
    config = settings(stage, text, tmp_path / "run", steps=3)
    mixed = batches(config)
    plain = stage("sft", batch_size=6)
    plain = parse(RunConfig, {**plain, "folder": str(tmp_path / "plain")})
    (tmp_path / "plain").mkdir()
    alone = training_batches(assemble(plain, tmp_path / "plain", CPU))
    for number in (0, 1, 5):
        parts = mixed.step(number)
        rows = [len(part.tokens) for part in parts]
        assert rows == [2, 2, 2, 2]
        for part, own in zip(parts[:3], alone.step(number), strict=True):
            assert torch.equal(part.targets, own.targets)
        words = parts[3]  # everything is learned there, but where a document ends
        assert (words.targets >= 0).float().mean() > 0.9


def test_text_may_come_late(stage, text: Path, tmp_path: Path) -> None:
    """Before it every row is a dialogue's, and no dialogue is read twice or left out."""
    config = settings(stage, text, tmp_path / "run", steps=3)
    late = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"replay": Replay(corpus=text, share=0.25, after=2)}
            )
        }
    )
    mixed, always = batches(late), batches(config)
    rows = [[len(part.tokens) for part in mixed.step(number)] for number in range(4)]
    assert rows == [[2, 2, 2, 2]] * 4
    assert mixed.fingerprint != always.fingerprint
    read = [
        part.tokens for number in range(4) for part in mixed.step(number)[: 4 if number < 2 else 3]
    ]
    order = always.corpus.order
    wanted = always.corpus.rows_from(0, 28, 0)
    assert torch.equal(torch.cat(read), torch.cat([part.tokens for part in wanted]))
    assert order.row(0) != order.row(27)
    for number in (2, 3):
        assert torch.equal(mixed.step(number)[3].tokens, always.step(number - 2)[3].tokens)


def test_text_that_never_comes_is_refused(stage, text: Path, tmp_path: Path) -> None:
    run = stage("sft", batch_size=8, steps=3)
    run["data"]["replay"] = {"corpus": str(text), "after": 3}
    with pytest.raises(
        SettingError, match=r"data\.replay\.after: 3 leaves no step of train.steps=3"
    ):
        parse(RunConfig, {**run, "folder": str(tmp_path / "run")})
    run = stage("curriculum", batch_size=8, steps=3)
    run["data"]["replay"] = {"corpus": str(text), "after": 1}
    with pytest.raises(SettingError, match=r"data\.replay\.after: a curriculum counts steps"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "run")})


def test_ranks_divide_both(stage, text: Path, tmp_path: Path) -> None:
    config = settings(stage, text, tmp_path / "run", steps=3)
    whole = batches(config)

    def rows(parts) -> list[list[int]]:
        return sorted(row for part in parts for row in part.tokens.tolist())

    shares = [batches(config, Alone(rank, 2, writer=False)) for rank in range(2)]
    for number in range(3):
        parts = [part for share in shares for part in share.step(number)]
        assert rows(parts) == rows(whole.step(number))
    assert {share.fingerprint for share in shares} == {whole.fingerprint}


@pytest.mark.parametrize(
    ("share", "batch_size", "ranks", "rows"),
    [(0.25, 8, 1, 2), (0.01, 8, 2, 2), (0.99, 8, 2, 6), (0.5, 6, 3, 3)],
)
def test_shares_are_whole_rows_of_every_rank(share, batch_size, ranks, rows) -> None:
    assert Replay(corpus=Path("x"), share=share).rows(batch_size, ranks) == rows


def test_what_cannot_be_replayed_is_refused(stage, text: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="a step of 2 rows on 2 ranks cannot be shared"):
        Replay(corpus=text).rows(2, 2)
    config = settings(stage, text, tmp_path / "run", steps=1)
    train(config)
    dialogues = settings(stage, tmp_path / "run" / "data", tmp_path / "other", steps=1)
    with pytest.raises(SettingError, match=r"data\.replay\.corpus: .* holds dialogues, not text"):
        train(dialogues)
    run = stage("dpo")
    run["data"]["replay"] = {"corpus": str(text)}
    with pytest.raises(SettingError, match=r"data\.replay: preference learns from pairs"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "dpo")})


def test_a_plan_says_what_is_replayed(stage, text: Path, tmp_path: Path, capsys) -> None:
    config = settings(stage, text, tmp_path / "run", steps=3)
    show_plan(config, {})
    shown = " ".join(capsys.readouterr().out.split())
    assert f"replayed 2 of 8 rows of a step, from {text}" in shown
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_rows_of_steps_before_the_replay(
    stage, text: Path, tmp_path: Path, capsys
) -> None:
    config = settings(stage, text, tmp_path / "run", steps=40)

    def epochs(after: int) -> float:
        replay = Replay(corpus=text, share=0.5, after=after)
        data = config.data.model_copy(update={"replay": replay})
        show_plan(config.model_copy(update={"data": data}), {})
        return float(re.search(r"epochs +(?:about )?([\d.]+)", capsys.readouterr().out)[1])

    always, late = epochs(0), epochs(20)
    assert late == pytest.approx(1.5 * always, abs=0.02)


@pytest.mark.slow
def test_a_plan_refuses_what_a_run_would(stage, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(text, other)
    manifest = Manifest.read(other)
    changed = manifest.model_copy(update={"tokenizer": "another"})
    (other / "manifest.json").write_text(changed.model_dump_json())
    for corpus, message in (
        (tmp_path / "none", r"data\.replay\.corpus: .*none: not a prepared corpus"),
        (other, r"data\.replay\.corpus: .*other was prepared with another tokenizer"),
    ):
        config = settings(stage, corpus, tmp_path / "run", steps=1)
        for start in (lambda config=config: show_plan(config, {}), lambda c=config: train(c)):
            with pytest.raises(SettingError, match=message):
                start()


def test_the_own_corpus_is_no_earlier_one(stage, tmp_path: Path) -> None:
    run = stage("sft")
    run["data"]["replay"] = {"corpus": str(tmp_path / "x" / ".." / "run" / "data")}
    with pytest.raises(SettingError, match=r"data\.replay\.corpus: it is the corpus itself"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "run")})


def test_a_run_with_text_resumes_exactly_and_refuses_other_text(
    stage, text: Path, tmp_path: Path
) -> None:
    def run(folder: Path, steps: int, corpus: Path = text):
        more = {"steps": steps, "checkpoint": {"every_steps": 2}}
        return train(settings(stage, corpus, folder, **more))

    run(tmp_path / "one", 4)
    run(tmp_path / "two", 2)
    run(tmp_path / "two", 4)
    one, two = (weights_in(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    other = tmp_path / "words.jsonl"
    other.write_text("".join(json.dumps({"text": f"other words {n}"}) + "\n" for n in range(60)))
    more = stage("pretrain", steps=1)
    more["data"] = {"path": str(other)}
    train(parse(RunConfig, {**more, "folder": str(tmp_path / "again")}))
    with pytest.raises(SettingError, match=r"data\.replay\.corpus: .*give a new run another"):
        run(tmp_path / "two", 6, tmp_path / "again" / "data")
