"""One dial: every depth builds, what is given stays, and the plan says what followed."""

import pytest

from culm.config import SettingError
from culm.run.settings import RunConfig, read_run


def dialled(depth: int, *settings: str) -> tuple[RunConfig, dict[str, str]]:
    return read_run(None, [f"model={{depth: {depth}}}", "data.path=text", *settings])


@pytest.mark.parametrize("depth", range(2, 33))
def test_every_depth_builds_and_fits(depth: int) -> None:
    config, _ = dialled(depth)
    model, train = config.model, config.train
    assert model is not None
    built = model.build(device="meta")
    assert (model.layers, model.width) == (depth, 64 * depth)
    heads = model.attention[0]
    assert heads.heads * heads.head_dim == model.width
    assert heads.head_dim in (64, 128)
    counted = sum(p.numel() for p in built.parameters()) - built.embed.weight.numel()
    tokens = train.steps * train.batch_size * model.context
    assert tokens / counted == pytest.approx(20, rel=0.05)
    assert train.batch_size & (train.batch_size - 1) == 0
    assert train.micro_batch_size * model.context <= 16_384
    assert train.batch_size % train.micro_batch_size == 0
    assert train.optimizer.rate == dialled(2)[0].train.optimizer.rate  # one for all


def test_golden_depth_12() -> None:
    config, origins = dialled(12)
    model, train = config.model, config.train
    assert (model.width, model.vocabulary, model.attention[0].heads) == (768, 12288, 6)
    assert (train.batch_size, train.micro_batch_size, train.steps) == (512, 32, 7200)
    assert model.resolved().residual.scale == pytest.approx(1 / 3)
    for name in (
        "model.width",
        "model.attention.heads",
        "train.batch_size",
        "train.optimizer.rate",
    ):
        assert origins[name] == "model.depth=12", name
    assert origins["data.path"] == "command line"
    assert "model.depth" not in origins


def test_larger_is_more_of_everything() -> None:
    runs = [dialled(depth)[0] for depth in (2, 4, 8, 16, 32)]
    for read in (lambda c: c.train.batch_size, lambda c: c.train.steps, lambda c: c.model.width):
        values = [read(run) for run in runs]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_what_is_given_stays_and_the_rest_follows() -> None:
    config, origins = dialled(
        8, "model.width=384", "train.batch_size=16", "model.vocabulary=256", "train.optimizer=muon"
    )
    assert (config.model.width, config.model.attention[0].heads) == (384, 3)
    assert (config.train.batch_size, config.train.micro_batch_size) == (16, 16)
    tokens = 20 * (12 * 8 * 384**2 + 256 * 384)
    assert config.train.steps == round(tokens / (16 * 512))
    assert config.train.optimizer.kind == "muon"
    assert origins["model.width"] == origins["train.batch_size"] == "command line"
    other, _ = dialled(4, "model.attention={kind: mla, heads: 2}", "train.steps=7")
    assert other.model.attention[0].kind == "mla"
    assert other.train.steps == 7


def test_the_run_file_and_the_dial() -> None:
    config, origins = read_run("depth", ["model.depth=6"])
    assert (config.model.width, config.model.layers) == (384, 6)
    assert origins["model.width"] == "model.depth=6"


@pytest.mark.parametrize("depth", ["0", "129", "deep", "true", "1.5", "[4]"])
def test_no_depth(depth: str) -> None:
    with pytest.raises(SettingError, match=r"model\.depth: expected a number of layers"):
        read_run(None, [f"model={{depth: {depth}}}", "data.path=text"])


def test_a_depth_beside_layers_is_refused() -> None:
    with pytest.raises(SettingError, match=r"model\.depth: the layers are given too; .*depth: 6"):
        read_run("pretrain", ["model.depth=6"])


def test_wrong_values_are_named_as_ever() -> None:
    with pytest.raises(SettingError, match=r"model\.width: "):
        dialled(4, "model.width=wide")
    with pytest.raises(SettingError, match=r"train\.batch_size: "):
        dialled(4, "train.batch_size=-1")
    with pytest.raises(SettingError, match=r"model\.heads: no such setting"):
        dialled(4, "model.heads=3")
