"""Settings: how files compose, who has the last word, and what errors say."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from learning import build
from patch_models import config_of_file

from culm.compose import CONFIGS, Composed, compose, merge
from culm.compose import compose_run as compose_layout
from culm.config import SettingError, parse
from culm.data.settings import DataConfig
from culm.eval.settings import EvalConfig
from culm.graph.settings import KIND, GraphRun
from culm.parallel.settings import ParallelConfig
from culm.run.settings import LAYOUT, RunConfig, read_run
from culm.run.train_settings import TrainConfig
from culm.tokenizer.train import BPE
from culm.verbs.any_run import read_any_run
from culm.verbs.evaluate_chat import with_judge

NAMES = {section: sorted((CONFIGS / section).glob("*.yaml")) for section in ("model", "run")}


def compose_run(run: str | Path, settings: Sequence[str] = ()) -> Composed:
    return compose_layout(run, settings, LAYOUT)


def values(*settings: str, run: str = "pretrain") -> dict:
    return compose_run(run, settings).values


@pytest.mark.parametrize("path", NAMES["model"], ids=lambda path: path.stem)
def test_every_model_builds(path: Path) -> None:
    model = config_of_file(path.stem).build(device="meta")
    assert sum(p.numel() for p in model.parameters()) > 100_000


@pytest.mark.parametrize("path", NAMES["run"], ids=lambda path: path.stem)
def test_every_run_parses(path: Path) -> None:
    given = compose_layout(path.stem, (), LAYOUT).values
    if given.get("kind") == KIND:
        points, _ = read_any_run(path.stem, ["data.path=x"])
        assert parse(GraphRun, points.model_dump(mode="json")) == points
        return
    data = given.get("data") or {}
    needed = (
        [] if data.get("tasks") or data.get("prepared") or data.get("path") else ["data.path=x"]
    )
    named = path.stem == "lcm"  # whose autoencoder is its start
    if given.get("start") is None and given.get("model") is None and not named:
        needed.append("start=x")
    if path.stem == "distill":
        needed.append("train.objective.teacher=x")
    config, origins = read_run(path.stem, needed)
    assert parse(RunConfig, config.model_dump(mode="json")) == config  # itself a run file
    assert set(origins.values()) <= {path.stem, "command line", "model.depth=4"} | {
        p.stem for p in CONFIGS.glob("*/*.yaml")
    }
    if config.model is not None:
        objective = build(config.train.objective, config.model.build(device="meta"))
        config.train.optimizer.build(objective)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("data", DataConfig),
        ("train", TrainConfig),
        ("parallel", ParallelConfig),
        ("eval", EvalConfig),
    ],
)
def test_every_section_parses(section: str, kind: type) -> None:
    files = sorted((CONFIGS / section).glob("*.yaml"))
    assert files
    for path in files:
        values = compose(path.stem, section).values
        if section == "data" and not {"path", "tasks"} & set(values):
            values["path"] = "given by the person"
        if path.stem == "distill":
            values["objective"] = {"kind": "distill", "teacher": "given by the person"}
        if path.stem == "chat" and section == "eval":
            values = with_judge(values, "http://localhost:8000/v1#judge")
        parse(kind, values, section)


def test_base_is_inherited_and_kinds_replace() -> None:
    lora, sft = compose("lora", "train"), compose("sft", "train")
    assert lora.values["steps"] == sft.values["steps"]
    assert lora.values["optimizer"] == {"kind": "adamw", "rate": 1e-3, "weight_decay": 0.0}
    assert lora.origins["steps"] == "sft"
    assert lora.origins["optimizer.rate"] == "lora"
    assert "optimizer.momentum" not in lora.origins  # of the muon that was replaced


def test_settings_over_a_section_that_is_the_name_of_a_file(tmp_path: Path) -> None:
    def composed(model: str) -> dict:
        (tmp_path / "run.yaml").write_text(f"base: demo\nmodel: {model}\n")
        return compose_run(tmp_path / "run.yaml").values["model"]

    demo = compose("demo", "model").values
    assert composed("{width: 64}") == {**demo, "width": 64}
    assert composed("{base: demo, width: 64}") == {**demo, "width": 64}
    assert composed("{base: tiny, width: 64}") == {**compose("tiny", "model").values, "width": 64}
    assert composed("nano") == compose("nano", "model").values


def test_a_word_is_what_the_layout_says() -> None:
    """Laid over by other settings, a word stands for the first one that is named for it."""
    start, words = {"start": "runs/x"}, {"start": ("path", "hf")}
    for above, merged in (
        ({"chat": True}, {"path": "runs/x", "chat": True}),
        ({"path": "runs/y", "chat": True}, {"path": "runs/y", "chat": True}),
        ({"hf": "a/b"}, {"hf": "a/b"}),
        ("runs/z", "runs/z"),
    ):
        assert merge(start, {"start": above}, words) == {"start": merged}
    assert merge({"part": "mla"}, {"part": {"heads": 2}}, words) == {
        "part": {"kind": "mla", "heads": 2}
    }
    inner = merge({"a": start}, {"a": {"start": {"heads": 2}}}, words)
    assert inner == {"a": {"start": {"kind": "runs/x", "heads": 2}}}  # only where the layout is


def test_a_start_below_is_kept_or_replaced(tmp_path: Path) -> None:
    """In files as on the command line, and with the origin of each part."""
    (tmp_path / "run.yaml").write_text("base: sft\nstart: {chat: true}\n")
    composed = compose_run(tmp_path / "run.yaml")
    assert composed.values["start"] == {"path": "runs/pretrain", "chat": True}
    composed = compose_run("sft", ["start.hf=a/b"])
    assert composed.values["start"] == {"hf": "a/b"}
    assert composed.origins["start.hf"] == "command line"


def test_the_command_line_has_the_last_word() -> None:
    composed = compose_run("pretrain", ["train.steps=7", "model=tiny", "model.layers=2"])
    assert composed.values["train"]["steps"] == 7
    assert composed.values["model"]["width"] == 384
    assert composed.values["model"]["layers"] == 2
    assert composed.origins["train.steps"] == composed.origins["model.layers"] == "command line"
    assert composed.origins["model.width"] == "tiny"
    assert composed.origins["train.batch_size"] == "pretrain"


def test_a_kind_is_switched_by_its_name_alone() -> None:
    for setting in ("train.optimizer=adamw", "train.optimizer.kind=adamw"):
        optimizer = parse(RunConfig, values(setting)).train.optimizer
        assert optimizer.kind == "adamw"
        assert optimizer.rate == 3e-4  # its own default, not that of the muon in the file
    assert parse(RunConfig, values("train.schedule=wsd")).train.schedule.kind == "wsd"


@pytest.mark.parametrize(
    "kind",
    ["train.optimizer.kind=adamw", "train.optimizer=adamw", "train.optimizer={kind: adamw}"],
)
def test_the_order_of_settings_does_not_matter(kind: str) -> None:
    settings = ["train.optimizer.rate=0.5", kind]
    for given in (settings, settings[::-1]):
        optimizer = parse(RunConfig, values(*given)).train.optimizer
        assert (optimizer.kind, optimizer.rate) == ("adamw", 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.steps=3", "train.steps=4"], r"train\.steps: given twice.*quotes"),
        (["train.optimizer.rate=3", "train.optimizer={rate: 4}"], r"optimizer\.rate: given twice"),
        (["train.optimizer=adamw", "train.optimizer.kind=muon"], r"optimizer\.kind: given twice"),
        (["start=a", "start.path=b"], r"start\.path: given twice"),
        (["start=a", "start.hf=b"], r"start\.hf: given twice"),
        (["model=nano", "model.base=tiny"], r"model\.base: given twice"),
        (
            ["train.adapter.rank=4", "train.adapter=null"],
            r"train\.adapter\.rank: .* as a whole too",
        ),
        (["data.tasks=[letters]", "data.tasks.kind=x"], r"data\.tasks\.kind: .* as a whole too"),
    ],
)
def test_one_of_two_settings_is_never_lost(settings: list[str], message: str) -> None:
    for given in (settings, settings[::-1]):
        with pytest.raises(SettingError, match=message):
            read_run("pretrain", given)


def test_a_path_replaces_the_tasks_of_a_recipe(tmp_path: Path) -> None:
    """With the settings that only tasks read; on the command line as in a file."""
    config, origins = read_run("sft", ["start=runs/x", "data.path=alpaca.jsonl"])
    assert (config.data.path, config.data.tasks) == (("alpaca.jsonl",), ())
    assert (config.data.format.kind, config.data.turns, config.data.held_out) == ("chat", 1, 0.02)
    assert not any(name.startswith(("data.tasks", "data.turns")) for name in origins)
    (tmp_path / "run.yaml").write_text("base: sft\ndata: {prepared: corpus, held_out: 0.1}\n")
    config, _ = read_run(str(tmp_path / "run.yaml"))
    assert (str(config.data.prepared), config.data.held_out) == ("corpus", 0.1)
    (tmp_path / "data.yaml").write_text(f"base: {tmp_path / 'run.yaml'}\ndata: {{path: x}}\n")
    config, _ = read_run(str(tmp_path / "data.yaml"))
    assert (config.data.path, config.data.prepared) == (("x",), None)


def test_settings_of_a_part_without_its_kind_are_those_of_the_default() -> None:
    config, _ = read_run("pretrain", ["data.format.text=content"])
    assert (config.data.format.kind, config.data.format.text) == ("document", "content")
    assert parse(DataConfig, {"path": "x", "format": {"text": "content"}}).format.text == "content"
    train = parse(TrainConfig, {"steps": 1, "schedule": {"warmup": 0.1}, "optimizer": {"rate": 1}})
    assert (train.schedule.kind, train.optimizer.kind) == ("cosine", "adamw")
    run = parse(RunConfig, values("data.path=x", "tokenizer.vocabulary=300"))
    assert run.tokenizer == BPE(vocabulary=300)
    for kind in ("bpe", "sentencepiece", "spacy"):
        run = parse(RunConfig, values("data.path=x", f"tokenizer={kind}", "model.vocabulary=777"))
        assert (run.tokenizer.kind, run.tokenizer.vocabulary) == (kind, 777)
    read = {"kind": "sentencepiece", "path": "x.model"}
    run = parse(RunConfig, {**values("data.path=x", "model.vocabulary=777"), "tokenizer": read})
    assert run.tokenizer.path == Path("x.model")
    with pytest.raises(SettingError, match=r"format\.txet: no such setting; did you mean 'text'"):
        parse(DataConfig, {"path": "x", "format": {"txet": "content"}})


def test_a_kind_that_is_needed_is_one_of_a_list() -> None:
    known_tasks = "arithmetic, calculator, choices"
    for name, known in (("data.tasks", known_tasks), ("model.attention", "gqa")):
        with pytest.raises(SettingError, match=rf"{name}\[0\]\.kind: .* is one of .*{known}"):
            parse(RunConfig, values("data.path=x", f"{name}=[{{windows: 3}}]"))


def test_a_list_replaces_a_list() -> None:
    config = parse(RunConfig, values("data.path=[a, b]"))
    assert config.data.path == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.setps=3"], r"train\.setps: no such setting; did you mean 'steps'"),
        (["train.optimizer.kind=muno"], r"train\.optimizer\.kind: 'muno' is not one of .*muon"),
        (
            ["model.attention.kv_heads=3"],
            r"model\.attention\[0\]\.kv_heads: 3 does not divide heads=8",
        ),
        (["model=nan"], r"model: there is no 'nan'; did you mean 'nano'"),
        (["train.steps=0"], r"train\.steps: .*greater than 0 \(given: 0\)"),
        (["train.steps=many"], r"train\.steps: .*\(given: 'many'\)"),
        (["nonsense=1"], "nonsense: no such setting"),
        (["train.steps"], "expected name=value"),
        (["train.steps=[1"], "train.steps: .* is not readable as YAML"),
        (["start=runs/x"], "model: give the settings of a new model, or start"),
        (
            ["data.tasks=[{kind: identity}]", "data.path=x"],
            r"data\.path: give one of path, prepared and tasks",
        ),
        (["data.tasks=[{kind: identity}]"], r"data\.format: tasks give dialogues; add data\."),
        (["train.steps=ten"], r"train\.steps: this is not a whole number \(given: 'ten'\)"),
        (["train.steps=1.5"], r"train\.steps: this is not a whole number \(given: 1\.5\)"),
        (
            ["data.mix=[{corpus: x, weight: -1}]"],
            r"data\.mix\[0\]\.weight: it should be greater than or equal to 0 \(given: -1\)$",
        ),
        (["train.clip=x"], r"train\.clip: this is not a number \(given: 'x'\)"),
        (["train.compile=5"], r"train\.compile: this is not true or false \(given: 5\)"),
        (
            ["train.precision=fp64"],
            r"train\.precision: it should be 'auto', 'fp32', 'bf16', 'fp16' or 'fp8'",
        ),
    ],
)
def test_errors_name_the_setting(settings: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_run("pretrain", settings)


def test_an_unknown_run_suggests_a_known_one() -> None:
    with pytest.raises(SettingError, match="name a run before its settings, as in: pretrain model"):
        read_run("model=nano", ["train.steps=3"])
    with pytest.raises(SettingError, match="run: there is no 'pretrian'; did you mean 'pretrain'"):
        read_run("pretrian")


def test_a_circle_of_bases_is_an_error(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({"base": str(tmp_path / f"{base}.yaml")})
        )
    with pytest.raises(SettingError, match="a -> b -> a is a circle"):
        compose(tmp_path / "a.yaml", "train")


def test_a_file_that_is_not_a_mapping_is_an_error(tmp_path: Path) -> None:
    for text in ("- a\n", "{a: [", "\xff\xfe"):
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(SettingError, match=str(path)):
            read_run(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("", "the file is empty"),
        ("base: [a, b]", r"run\.base: expected the name of one file"),
        ("model: [1]", r"model: expected settings or the name of a file: \[1\]"),
    ],
)
def test_unclear_run_files_are_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_run(str(tmp_path), ["model.width=64"])  # a folder stands for the run file in it


def test_a_folder_is_a_name() -> None:
    for name in ("my #1 run", "5", "u/x #2"):
        assert read_run("pretrain", [f"folder={name}"])[0].folder == name


def test_settings_do_not_change() -> None:
    config, _ = read_run("pretrain")
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 1  # type: ignore[misc]
