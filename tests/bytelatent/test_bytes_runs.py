"""Models of bytes from a run file to a generated text."""

import json
import math
import shutil

import pytest
import torch
from bytes_runs import LATENT, STACK, patches, settings
from stages import untimed, weights_in

import culm
from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.family import NoFamilyError
from culm.convert.hf import export
from culm.files import read_lines
from culm.plan.family import Family
from culm.plan.model import cost_of, forward_flops
from culm.run.patching import model_settings
from culm.run.settings import read_run
from culm.run.train import train
from culm.tokenizer import TokenizerConfig
from culm.tokenizer.bytes import Bytes
from culm.train.events import Stepped
from culm.train.listeners import MetricsFile
from culm.verbs.plan import show_plan

SLOW = [pytest.param(k, marks=pytest.mark.slow) for k in ("megabyte", "spacebyte", "hnet")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of a plain model of bytes."""
    folder = tmp_path_factory.mktemp("small") / "run"
    train(settings(folder, {}))
    return folder


@pytest.mark.parametrize("kind", ["blt", *SLOW])
def test_a_run_is_trained_measured_loaded_and_generates(kind, small, tmp_path):
    train(settings(tmp_path / "run", patches(kind, small)))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < results["bits_per_byte"] < 9
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(lines[-1])["patches_per_byte"] < 1
    model = culm.load(tmp_path / "run", device="cpu")
    assert model.model.config.kind == kind
    said = model.generate("the quick", max_tokens=5, temperature=0)
    assert said == model.generate("the quick", max_tokens=5, temperature=0)
    assert isinstance(model.chat("hello", max_tokens=3), str)
    ids = torch.tensor(model.encode("the lazy dog"))
    expected = model.logits(ids).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(model.logprobs(ids), expected)


def test_blt_takes_weights_and_threshold_from_a_run(small, tmp_path):
    patching = {"path": str(small), "bytes_per_patch": 3.0, "max_bytes": 8}
    blt = {"kind": "blt", "latent": LATENT, "encoder": STACK, "heads": 2, "patching": patching}
    train(settings(tmp_path / "run", blt))
    trained, own = culm.load(tmp_path / "run", device="cpu"), culm.load(small, device="cpu")
    patcher = trained.model.bridge.patcher
    weights = own.model.state_dict()
    assert weights.keys() == patcher.model.state_dict().keys()
    assert all(torch.equal(t, weights[name]) for name, t in patcher.model.state_dict().items())
    assert patcher.threshold.isfinite()
    assert trained.model.config.patching.model == own.model.config


def test_another_small_model_is_refused_where_a_run_resumes(small, tmp_path):
    """No checkpoint has its weights."""
    folder = tmp_path / "small"
    shutil.copytree(small / "model", folder)
    more = {"train": {"steps": 3, "batch_size": 2, "precision": "fp32"}}
    train(settings(tmp_path / "run", patches("blt", folder)))
    show_plan(settings(tmp_path / "run", patches("blt", folder), **more), {})
    model, tokenizer = native.load(folder)
    with torch.no_grad():
        model.embed.weight[3, 3] += 1e-3
    native.save(model, tokenizer, folder)
    for start in (lambda run: show_plan(run, {}), train):
        with pytest.raises(SettingError, match=r"model\.patching\.path=\S+small: not what"):
            start(settings(tmp_path / "run", patches("blt", folder), **more))


def test_a_small_model_that_does_not_fit_is_refused(small, tmp_path):
    blt = {"kind": "blt", "latent": LATENT, "encoder": STACK, "heads": 2}
    with pytest.raises(SettingError, match="entropies need a small model of bytes"):
        model_settings(settings(tmp_path / "run", blt))
    blt["patching"] = {"path": str(small)}
    with pytest.raises(SettingError, match="its context of 64 bytes is shorter than that of"):
        model_settings(settings(tmp_path / "run", {**blt, "context": 128}))
    with pytest.raises(SettingError, match=r"model\.patching\.path: .*nowhere"):
        model_settings(settings(tmp_path / "run", {**blt, "patching": {"path": "nowhere"}}))


def test_patch_models_have_no_family_and_no_other_vocabulary(tmp_path):
    run = settings(tmp_path / "run", {"kind": "megabyte", "latent": LATENT})
    with pytest.raises(NoFamilyError, match="no Hugging Face family"):
        export(run.model.build(), Bytes(specials=True).build(), tmp_path / "hf")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["megabyte", "spacebyte", "hnet"])
def test_every_model_file_is_cheaper_for_a_byte_than_the_plain_one(kind):
    plain = cost_of(read_run("bytes", [])[0].model, 128)
    cost = cost_of(read_run("bytes", [f"model={kind}"])[0].model, 128)
    assert cost.training_flops <= plain.training_flops
    assert 3 <= cost.training_flops / cost.forward_flops <= 3.2  # with logits computed again


def test_the_layers_of_patches_are_counted_for_patches():
    config = read_run("bytes", ["model=spacebyte", "model.latent.layers=1"])[0].model
    latent = config.latent
    more = config.model_copy(update={"latent": latent.model_copy(update={"layers": 2})})
    one, two = (model.build(device="meta") for model in (config, more))
    patches = math.ceil(128 / config.bytes_per_patch)
    block = sum(p.numel() for p in two.latent.blocks[1].parameters() if p.ndim == 2)
    attention = 4 * patches * patches * latent.width
    added = forward_flops(two, 128) - forward_flops(one, 128)
    assert added == 2 * patches * block + attention


def test_a_budget_for_parts_of_several_widths_is_refused():
    with pytest.raises(SettingError, match="a spacebyte model has parts of several widths"):
        Family(read_run("bytes", ["model=spacebyte"])[0].model, 128)


@pytest.mark.parametrize("kind", ["blt", *SLOW])
def test_a_run_that_was_stopped_ends_as_if_it_had_not(kind, small, tmp_path, monkeypatch):
    """After a step with a checkpoint, and one without."""
    more = {"steps": 5, "batch_size": 2, "precision": "fp32", "checkpoint": {"every_steps": 2}}
    runs = [settings(tmp_path / name, patches(kind, small), train=more) for name in ("one", "two")]
    assert train(runs[0]).finished
    write = MetricsFile.__call__

    def stop(self, event):
        write(self, event)
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsFile, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        train(runs[1])
    monkeypatch.undo()
    assert train(runs[1]).finished
    weights = [weights_in(tmp_path / name) for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[1][name], one) for name, one in weights[0].items())
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert list(map(untimed, lines[0])) == list(map(untimed, lines[1]))


@pytest.mark.parametrize("kind", ["blt", "spacebyte"])
def test_ids_that_are_no_bytes_are_refused(kind, small, tmp_path):
    config = settings(tmp_path / "run", patches(kind, small))
    bpe = parse(TokenizerConfig, {"kind": "bpe", "vocabulary": 262})
    with pytest.raises(SettingError, match=f"tokenizer: model={kind} ends patches by the values"):
        train(config.model_copy(update={"tokenizer": bpe}))


def test_a_small_model_of_other_ids_is_refused(tmp_path):
    bpe = parse(TokenizerConfig, {"kind": "bpe", "vocabulary": 262})
    train(settings(tmp_path / "small", {}).model_copy(update={"tokenizer": bpe}))
    with pytest.raises(SettingError, match="does not read bytes"):
        train(settings(tmp_path / "run", patches("blt", tmp_path / "small")))
