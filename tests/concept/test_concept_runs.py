"""Runs of the autoencoder and of networks on it: trained, resumed, saved, loaded."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from concept_stages import SMALL, autoencoder_in, config_of, lcm, start, write_texts
from stages import untimed, weights_in

import culm
from culm.concept.model import ConceptModel
from culm.config import SettingError, alternatives
from culm.convert.load import load_model
from culm.eval.local import LocalModel
from culm.files import read_lines
from culm.objective import Objective
from culm.run.objective import ModelLoader, change_model
from culm.run.train import Result
from culm.text.concepts import ConceptLanguageModel

KINDS = ("base", "two_tower", *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("one_tower", "quantized")
))  # fmt: skip
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts, and a place for runs."""
    folder = tmp_path_factory.mktemp("concepts")
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return partial(start, folder)


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> Path:
    done = autoencoder_in(folder)
    assert done.results["loss"] < 0.7 * read_lines(folder / "ae" / "eval.jsonl")[0]["loss"]
    return folder / "ae"


@pytest.fixture(scope="module")
def trained(run: Run, folder: Path, autoencoder: Path) -> Callable[[str], Path]:
    """The run of a kind, made once."""

    def find(kind: str) -> Path:
        if not (folder / kind).exists():
            lcm(run, folder / kind, autoencoder, kind)
        return folder / kind

    return find


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_trained_saved_and_continues_a_text(kind: str, trained, autoencoder) -> None:
    place = trained(kind)
    results = json.loads((place / "results.json").read_text())
    assert {"mrr", "recall_at_10", "shuffled_mrr", "copy_mrr"} <= results.keys()
    before, after = weights_in(autoencoder), weights_in(place)
    for name, weight in before.items():  # the autoencoder is inside, unchanged but for its scale
        same = torch.equal(after[name], weight)
        assert same is not name.startswith("model/normalizer"), name
    model = culm.load(place)
    assert isinstance(model, ConceptLanguageModel)
    text = model.generate("Tom ran. Ann sang.", max_tokens=12, seed=1)
    assert text == model.generate("Tom ran. Ann sang.", max_tokens=12, seed=1)
    assert "".join(model.stream("Tom ran. Ann sang.", 12, seed=1)) == text
    assert len(text) <= 13  # bytes are tokens, and a space
    assert any(model.generate("Tom ran.", max_tokens=4, seed=seed) for seed in range(8))
    assert len(model.generate(["Tom ran.", "Eve"], max_tokens=3, seed=1)) == 2


@pytest.mark.parametrize("kind", ["quantized", pytest.param("two_tower", marks=pytest.mark.slow)])
def test_stopped_and_resumed_is_never_stopped(
    kind: str, trained, run, autoencoder, tmp_path
) -> None:
    """With other micro-batches after the resume, the concepts were scaled as before."""
    every = {"train.checkpoint.every_steps": 2}
    lcm(run, tmp_path / "run", autoencoder, kind, **{"train.steps": 2}, **every)
    lcm(run, tmp_path / "run", autoencoder, kind, **{"train.steps": 4}, **every)
    one, two = trained(kind), tmp_path / "run"
    lines = [[untimed(line) for line in read_lines(f / "metrics.jsonl")] for f in (one, two)]
    assert lines[0] == lines[1]
    for name, weight in weights_in(one).items():
        assert torch.equal(weights_in(two)[name], weight), name


@pytest.mark.parametrize("kind", ["base", "quantized"])
def test_a_trained_network_keeps_its_scale_and_codebooks(kind: str, trained, run, tmp_path) -> None:
    """Weights that were trained for others would be wrong with new ones."""
    more = {"data.held_out": 0.4, "seed": 3, "train.steps": 1}
    lcm(run, tmp_path / "run", trained(kind), kind, **more)
    before, after = weights_in(trained(kind)), weights_in(tmp_path / "run")
    fitted = [name for name in before if "normalizer" in name or "codebooks" in name]
    assert len(fitted) == {"base": 2, "quantized": 3}[kind]
    for name in fitted:
        assert torch.equal(before[name], after[name]), name


def test_noise_is_the_same_for_every_size_of_micro_batches(trained, run, autoencoder, tmp_path):
    """Each row has its own, in whatever batch it is."""
    lcm(run, tmp_path / "run", autoencoder, "two_tower", **{"train.micro_batch_size": 1})
    lines = [read_lines(f / "metrics.jsonl") for f in (trained("two_tower"), tmp_path / "run")]
    for one, other in zip(*lines, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_an_autoencoder_that_changed_is_refused(run, folder, autoencoder, tmp_path) -> None:
    copy = tmp_path / "ae"
    lcm(run, tmp_path / "run", autoencoder, "base", **{"train.checkpoint.every_steps": 2})
    shutil.copytree(autoencoder, copy)
    lcm(run, tmp_path / "other", copy, "base", **{"train.checkpoint.every_steps": 2})
    shutil.rmtree(copy)
    autoencoder_in(
        tmp_path.parent, str(copy), 2, **{"data.path": folder / "t.jsonl", "model.concept": 24}
    )
    with pytest.raises(SettingError, match=r"start=.*: not what .* was trained with"):
        lcm(run, tmp_path / "other", copy, "base", **{"train.steps": 6})


def test_sentences_and_concepts_of_a_loaded_model(autoencoder, trained) -> None:
    model = culm.load(trained("base"))
    for take in (model.concepts, model.in_context):
        assert take([]).shape == (0, 16 if take == model.concepts else 24)
        with pytest.raises(ValueError, match="sentences: this is one text; give a list"):
            take("Tom ran. Ann sang.")
    assert model.sentences(model.concepts([])) == model.generate([]) == []
    with pytest.raises(ValueError, match=r"concepts: shape \(16,\) is not \(N, 16\)"):
        model.sentences(model.concepts(["Tom ran."])[0])
    with pytest.raises(ValueError, match="concepts: there are none"):
        next(model.following(model.model.network, model.concepts([])))
    concepts = model.concepts(["Tom ran. ", "Ann sang. ", "Tom ran. "])
    assert concepts.shape == (3, 16)
    torch.testing.assert_close(concepts[0], concepts[2])
    assert len(model.sentences(concepts, max_tokens=5)) == 3
    with pytest.raises(SettingError, match="tokens_per_step: the sentences of concepts"):
        culm.load(trained("base"), tokens_per_step=2)
    with pytest.raises(SettingError, match="has no chat"):
        model.chat("Hello?")
    for engine in (lambda: model.dialogue_engine(8), lambda: model.generator(1, 8)):
        with pytest.raises(SettingError, match="has no chat"):  # as an agent or answers would ask
            engine()
    with pytest.raises(ValueError, match="prompt: it has no sentence"):
        model.generate(" \n")
    with pytest.raises(SettingError, match="this is an autoencoder"):
        culm.load(autoencoder).generate("Tom ran.")
    with pytest.raises(SettingError, match="this is an autoencoder"):
        culm.load(autoencoder).in_context(["Tom ran."])


def test_states_of_sentences_depend_on_those_before(trained) -> None:
    """On as many as the network reads; on none after."""
    model = culm.load(trained("base"))
    names = ["Tom", "Ann", "Eve", "Bob", "Joe", "Sue", "Kit", "Max", "Ned", "Pat", "Ray", "Tim"]
    text = [f"{name} ran. " for name in names]
    states = model.in_context(text)
    assert states.shape == (12, model.model.network.config.trunk.width)
    other = model.in_context(["It rained. ", *text[1:-1], "It snowed. "])
    assert not torch.allclose(states[1], other[1])
    torch.testing.assert_close(states[-3:-1], other[-3:-1])  # half of its 8 sentences are read
    assert not torch.allclose(states[-1], other[-1])
    torch.testing.assert_close(states[:1], model.in_context(text[:1]))


def test_long_texts_are_read_from_their_last_sentences(trained) -> None:
    model = culm.load(trained("base"))
    long = "Tom ran. Ann slept. " * 10
    concepts = model.concepts(["Tom ran. ", "Ann slept. "] * 10)
    following = model.following(model.model.network, concepts, seed=0)
    found = [concept for _, concept in zip(range(12), following, strict=False)]
    assert found  # beyond the context of the network, half of it is read again
    assert model.generate(long, max_tokens=4)


def test_a_model_of_concepts_is_no_decoder_of_tokens(trained, run, autoencoder, tmp_path) -> None:
    """Nothing else trains it, as a policy or a teacher, and it has no bits per byte of a text."""
    refused = pytest.raises(SettingError, match="its decoder writes a sentence from a concept")
    model, tokenizer = load_model(trained("base"))
    config = config_of(tmp_path, "pretrain", model="null", start="x", **{"data.path": "x"})
    for kind in alternatives(Objective):
        if kind.reads_concepts:
            continue
        train = config.train.model_copy(update={"objective": kind.model_construct()})
        with refused:
            change_model(config.model_copy(update={"train": train}), model)
    with refused:
        ModelLoader(config, torch.device("cpu"))("train.objective.teacher", str(autoencoder))
    with refused:
        LocalModel(model, tokenizer).rolling(["Tom ran."])


def test_what_an_lcm_cannot_start_from(run, folder, autoencoder, tmp_path, trained) -> None:
    plain = {
        "model": {"vocabulary": 257, "width": 16, "layers": 1, "context": 128,
                  "attention": {"kind": "gqa", "heads": 2}},
        "tokenizer": "bytes", "train.steps": 1, "eval": {"measures": {}},
    }  # fmt: skip
    run("pretrain", folder=tmp_path / "plain", **plain)
    with pytest.raises(SettingError, match="without an encoder of sentences"):
        lcm(run, tmp_path / "x", tmp_path / "plain", "base")
    with pytest.raises(SettingError, match=r"^train\.objective\.autoencoder: .*no such file"):
        lcm(run, tmp_path / "x", tmp_path / "none", "base")
    with pytest.raises(SettingError, match="has a network with other settings"):
        lcm(run, tmp_path / "x", trained("base"), "quantized")
    with pytest.raises(SettingError, match=r"start: .* is not train\.objective"):
        lcm(run, tmp_path / "x", autoencoder, "base", start=tmp_path / "plain")
    with pytest.raises(SettingError, match="other ones after more training"):
        run("concept-autoencoder", folder=tmp_path / "y", model="null", start=trained("base"))
    with pytest.raises(SettingError, match="rows have up to 8 sentences"):
        lcm(run, tmp_path / "z", autoencoder, "base", {**SMALL, "context": 4})
    with pytest.raises(SettingError, match=r"train\.adapter: an LCM trains a network of its own"):
        lcm(run, tmp_path / "w", autoencoder, "base", **{"train.adapter": "lora"})
    assert isinstance(load_model(trained("base"))[0], ConceptModel)
