"""`culm push`: what goes to the hub, what never does, and what its card says."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from hub_stub import REPO, Hub, hub
from huggingface_hub import ModelCard
from stages import go
from test_targets import adapter

from culm.cli import main
from culm.config import SettingError
from culm.convert import native
from culm.convert.export import export
from culm.eval.interval import Estimate
from culm.lineage import Content, CorpusRecord, Lineage, read_lineage
from culm.ship.made import bases_of, made_text, public
from culm.ship.push import prepare, push

assert hub  # a fixture
SCORES = {"scores": {"arithmetic": asdict(Estimate(0.875, 0.81, 0.92, items=400))}}


@pytest.fixture
def run(stage, tmp_path: Path) -> Path:
    folder = tmp_path / "private" / "run"
    go({**stage("sft", steps=2, checkpoint={"every_steps": 1}), "folder": str(folder)})
    return folder


def card_of(text: str) -> tuple[dict, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_version(hub: Hub, run: Path, tmp_path: Path) -> None:
    results = tmp_path / "eval.json"
    results.write_text(json.dumps({**SCORES, "bits_per_byte": 1.25, "seconds": 3}))
    url = push(str(run), REPO, None, "apache-2.0", [str(results)], False)
    assert url.startswith(hub.url)
    assert hub.private is True
    assert list(hub.tags) == ["v1"]
    files = hub.files["main"]
    assert {"README.md", "model.safetensors", "model.json", "tokenizer.json"} <= files.keys()
    for name, content in files.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    ours, theirs = (native.load(f)[0].state_dict() for f in (run / "model", tmp_path / "there"))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert read_lineage(tmp_path / "there") is not None
    front, body = card_of(files["README.md"].decode())
    assert front["license"] == "apache-2.0"
    assert front["tags"] == ["culm"]
    assert front["model-index"][0]["results"][0]["metrics"] == [
        {"type": "accuracy", "value": 0.875}
    ]
    assert "| arithmetic | 87.5 % (81.0 - 92.0) | 400 |" in body
    assert "| held-out bits per byte | 1.2500 |" in body
    assert "seconds" not in body
    assert f"culm chat {REPO}" in body
    assert f'culm.load("{REPO}")' in body
    assert "1. `culm train`: objective next_token, steps" in body
    assert ModelCard(files["README.md"].decode()).data.license == "apache-2.0"


def test_no_data_and_no_places_leave_the_machine(hub: Hub, run: Path) -> None:
    (run / "model" / "notes.txt").write_text("private")
    (run / "model" / "data.jsonl").write_text("{}")
    upload = prepare(str(run), REPO, "v1", None, [])
    assert upload.left == ["data.jsonl", "notes.txt"]  # all that Culm wrote goes
    push(str(run), REPO, None, None, [], True)
    assert hub.private is False
    files = hub.files["main"]
    assert not {"notes.txt", "data.jsonl"} & files.keys()
    assert not [name for name in files if "checkpoint" in name or name.endswith((".npz", ".bin"))]
    texts = {name: content for name, content in files.items() if not name.endswith("tensors")}
    where = str(run.parents[1]).encode()
    assert [name for name, content in texts.items() if where in content] == []
    assert where.decode() in (run / "model" / "lineage.json").read_text()  # it was there


def test_versions_follow_each_other(hub: Hub, run: Path, tmp_path: Path) -> None:
    push(str(run), REPO, None, None, [], False)
    hub.files["main"]["model-00001-of-00002.safetensors"] = b"old"
    hub.files["main"]["pictures/fox.png"] = b"kept"
    push(str(run), REPO, None, None, [], False)
    push(str(run), REPO, "paper", None, [], False)
    assert list(hub.tags) == ["v1", "v2", "paper"]
    assert len(set(hub.tags.values())) == 3
    assert "model-00001-of-00002.safetensors" not in hub.files["main"]
    assert "pictures/fox.png" in hub.files["main"]
    with pytest.raises(SettingError, match="--tag: somebody/tiny has a version 'v2' already"):
        push(str(run), REPO, "v2", None, [], False)
    assert hub.files["main"]["README.md"].decode().count("## Licence") == 1


def test_a_pushed_card_is_pushed_again(run: Path) -> None:
    first = prepare(str(run), REPO, "v1", None, []).written["README.md"]
    (run / "model" / "README.md").write_text(first)
    assert prepare(str(run), REPO, "v1", None, []).written["README.md"] == first


def test_other_formats(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "hf", "float32")
    upload = prepare(str(folder), REPO, "v1", None, [])
    assert {"config.json", "model.safetensors"} <= upload.files.keys()
    body = card_of(upload.written["README.md"])[1]
    assert body.index("1. `culm train`") < body.index("3. `culm export")
    other = export(run, tmp_path / "fox.gguf", "f32")
    assert prepare(str(other), REPO, "v1", None, []).files == {"fox.gguf": other}


def test_an_adapter(tmp_path: Path) -> None:
    upload = prepare(str(adapter(tmp_path / "poet")), REPO, "v1", None, [])
    assert upload.files.keys() == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_run_without_a_model_is_refused(run: Path) -> None:
    """Although its folder has checkpoints and other tensors."""
    shutil.rmtree(run / "model")
    shutil.copy(next((run / "checkpoints").rglob("*.safetensors")), run / "precomputed.safetensors")
    with pytest.raises(SettingError, match="there is no finished model"):
        prepare(str(run), REPO, "v1", None, [])


@pytest.mark.parametrize(
    "repo", ["tiny", "a/b/c", "some body/x", "a/b--c", "a/-b", "ü/ü", "a/b.git"]
)
def test_a_name_that_is_no_repository(repo: str, run: Path) -> None:
    with pytest.raises(SettingError, match="not the name of a repository"):
        prepare(str(run), repo, "v1", None, [])


def test_without_a_token(hub: Hub, run: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("culm.ship.push.get_token", lambda: None)
    with pytest.raises(SettingError, match="no token of the Hugging Face hub: run `hf auth login`"):
        push(str(run), REPO, None, None, [], False)
    assert not hub.files


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "may not write there"), (401, "the token is not valid"), (400, "the hub refuses")],
)
def test_a_hub_that_refuses(status: int, words: str, hub: Hub, run: Path) -> None:
    hub.status = status
    with pytest.raises(SettingError, match=words):
        push(str(run), REPO, None, None, [], False)


def test_no_network(hub: Hub, run: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingError, match="the hub is not reachable"):
        push(str(run), REPO, None, None, [], False)


def test_a_dry_run_asks_nobody(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["culm", "push", str(run), REPO, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr()
    assert card_of(said.out)[1].startswith("\n# run\n")
    assert "model.safetensors, " in said.err
    assert "Nothing was uploaded" in said.err


def test_the_way_of_a_model() -> None:
    """Each stage once, in order, with names in place of paths."""
    base = Lineage(
        command=("train",), directory="/home/me", files={"model.safetensors": "a" * 64},
        settings={
            "folder": "/home/me/runs/base", "seed": 3, "data": {"path": ["/data/books.txt"]},
            "train": {"objective": {"kind": "next_token"}},
        },
        corpora=(
            CorpusRecord(
                path="/home/me/corpus", manifest="c" * 64, cleaning=("exact",),
                origin=(Content(path="/data/books.txt", sha256="b" * 64),),
            ),
        ),
        models={"start": Content(path="HuggingFaceTB/SmolLM2-135M", sha256="d" * 64)},
    )  # fmt: skip
    tuned = Lineage(
        command=("train",), directory="/home/me", files={"model.safetensors": "e" * 64},
        settings={"folder": "runs/tuned", "train": {"objective": {"kind": "dpo"}}},
        models={"start": base, "objective.reference": base},
    )  # fmt: skip
    text = made_text(tuned)
    assert text.splitlines()[2:4] == [
        "1. `culm train`: objective next_token, seed 3, processes 1",
        "2. `culm train`: objective dpo, processes 1",
    ]
    assert "| 1 | books.txt | bbbbbbbbbbbb | exact |" in text
    assert "`HuggingFaceTB/SmolLM2-135M (start)`" in text
    assert bases_of(tuned) == ["HuggingFaceTB/SmolLM2-135M"]
    written = json.dumps(public(tuned))
    assert "/home" not in written
    assert "/data" not in written
    assert Lineage.model_validate(json.loads(written)).models.keys() == {
        "start", "objective.reference",
    }  # fmt: skip


@pytest.mark.parametrize("tag", ["", "v 1", "a/b", "a..b", "main", "v1.lock", "-x", "~1"])
def test_a_tag_that_git_does_not_take(tag: str, hub: Hub, run: Path) -> None:
    """Nothing is uploaded whose version could not be named."""
    with pytest.raises(SettingError, match="--tag"):
        push(str(run), REPO, tag, None, [], False)
    assert not hub.files


def test_a_card_is_titled_with_the_run(run: Path) -> None:
    assert f"\n# {run.name}\n" in prepare(str(run), REPO, "v1", None, []).written["README.md"]


def test_results_of_two_suites_are_together(run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    paths[0].write_text(json.dumps(SCORES))
    other = {"gsm8k": {"value": 0.25, "low": 0.2, "high": 0.3, "items": None}}
    paths[1].write_text(json.dumps({"scores": other, "perplexity": None}))
    body = prepare(str(run), REPO, "v1", None, list(map(str, paths))).written["README.md"]
    assert "| arithmetic | 87.5 % (81.0 - 92.0) | 400 |" in body
    assert "| gsm8k | 25.0 % (20.0 - 30.0) |  |" in body


def test_a_measure_without_a_number_is_left_out(run: Path, tmp_path: Path) -> None:
    nothing = {"value": None, "low": None, "high": None}
    (tmp_path / "r.json").write_text(json.dumps({"scores": {"mmlu": nothing}}))
    body = prepare(str(run), REPO, "v1", None, [str(tmp_path / "r.json")]).written["README.md"]
    assert "Nothing was measured." in body


def test_a_card_of_ones_own(run: Path) -> None:
    readme = run / "model" / "README.md"
    readme.write_text("---\ntags: [a\n---\nMine\n")
    with pytest.raises(SettingError, match="front matter is not readable as YAML"):
        prepare(str(run), REPO, "v1", None, [])
    readme.write_text("---\nA line above.\n---\nMine\n")
    assert "A line above." in prepare(str(run), REPO, "v1", None, []).written["README.md"]
    readme.write_bytes(b"\xef\xbb\xbf---\ntags: [mine]\n---\nMine\n")
    front, _ = card_of(prepare(str(run), REPO, "v1", None, []).written["README.md"])
    assert front["tags"] == ["culm", "mine"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.path=/home/me/books.txt", "data.path=books.txt"),
        ("{kind: model, path: /home/me/reward}", "{kind: model, path: reward}"),
        ("tokenizer=C:\\Users\\me\\tok", "tokenizer=tok"),
        ("file:///home/me/a.txt", "a.txt"),
        ("texts/../../me/a.txt", "a.txt"),
        ("texts/a.txt", "texts/a.txt"),
        ("https://example.org/a/b.txt", "https://example.org/a/b.txt"),
        ("train.optimizer.rate=1e-3", "train.optimizer.rate=1e-3"),
    ],
)
def test_no_place_in_any_word(word: str, said: str) -> None:
    made = Lineage(command=("prepare", word), directory="/home/me", files={})
    assert public(made)["command"] == ["prepare", said]


def test_a_tag_that_fails_after_the_upload(hub: Hub, run: Path, monkeypatch) -> None:
    def refused(*given: object, **more: object) -> None:
        raise OSError("connection lost")

    monkeypatch.setattr("culm.ship.push.HfApi.create_tag", refused)
    with pytest.raises(SettingError, match="files of version v1 are there, but not its tag"):
        push(str(run), REPO, None, None, [], False)
    assert hub.files
