"""A longer context: the same weights, slower rotations, and a run that trains with it."""

import pytest
import torch
import yaml
from tiny_models import tiny_model

from culm.adapt.extend import Extend
from culm.config import SettingError
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.rope import LinearScaling, YaRNScaling
from culm.run.settings import read_run
from culm.run.train import train

IDS = torch.arange(20)[None] % 13
KINDS = {
    "plain": (GQA(heads=2),),
    "latents": (MLA(heads=2, rank=8, head_dim=8, rope_dim=4, value_dim=8),),
    "mixed": (GQA(heads=2, window=4, rope={"base": 500.0}), GQA(heads=2)),
    "shared": (GQA(heads=2, window=4), GQA(heads=2)),  # one rotation that becomes two
    "alibi": (GQA(heads=2, rope=None, alibi=True),),
}


def model(kind: str = "plain", **more):
    return tiny_model(8, attention=KINDS[kind], vocabulary=13, context=24, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_is_built_with_these_settings(kind):
    """And not the old one, where a layer rotates over the whole context."""
    plain, extended = model(kind), model(kind)
    Extend(context=96).apply(extended)
    built = extended.config.build()
    built.load_state_dict(plain.state_dict())
    assert built.config.context == 96
    torch.testing.assert_close(extended(IDS), built(IDS))
    assert torch.equal(extended(IDS), plain(IDS)) == (kind == "alibi")


def test_yarn_by_the_ratio_is_the_default_and_a_window_stays():
    extended = model("mixed")
    Extend(context=96).apply(extended)
    local, full = (part.rope for part in extended.config.attention)
    assert local.scaling is None
    assert full.scaling == YaRNScaling(factor=4, original=24)


def test_a_factor_of_one_changes_nothing():
    plain, extended = model(), model()
    Extend(context=96, scaling=LinearScaling(factor=1)).apply(extended)
    assert torch.equal(plain(IDS), extended(IDS))


def test_what_cannot_grow_is_refused():
    with pytest.raises(SettingError, match="reads 24 tokens already"):
        Extend(context=24).apply(model())
    with pytest.raises(SettingError, match="learned positions"):
        Extend(context=48).apply(model(learned_positions=True))
    twice = model()
    Extend(context=48).apply(twice)
    with pytest.raises(SettingError, match="has yarn scaling already"):
        Extend(context=96).apply(twice)


def test_a_run_trains_with_the_longer_context(run_file, capsys):
    file = run_file("sft", steps=2)
    settings = yaml.safe_load(file.read_text())
    before = native.load(f"{settings['start']}/model")[0].config.context
    settings["extend"] = {"context": 2 * before}
    settings["train"].pop("context", None)
    file.write_text(yaml.safe_dump(settings))
    config, _ = read_run(str(file))
    assert train(config).finished
    assert f"grew from {before} to {2 * before} tokens" in capsys.readouterr().err
    found = native.load(f"{config.folder}/model")[0].config
    assert found.context == 2 * before
    assert found.attention[0].rope.scaling.kind == "yarn"
    with pytest.raises(SettingError, match="extend: a new model has the context"):
        read_run("pretrain", ["data.path=x", "extend.context=96"])
