"""Rotary settings in the forms of published files: as transformers reads them, or refused."""

import json

import pytest
import torch
from family_models import logits_of, peer_of, saved

from culm.config import SettingError
from culm.convert.load import load_model

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
READ = [
    None,
    {"rope_type": "default"},
    {"type": "linear", "factor": 2},
    {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", **LLAMA3},
    {"type": "llama3", "rope_type": "llama3", **LLAMA3},
    {"rope_type": "yarn", "factor": 4.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True},
    {"rope_type": "llama3", **{n: v for n, v in LLAMA3.items() if not n.startswith("original")}},
    {"type": "yarn", "factor": 4.0, "attention_factor": None, "beta_fast": 32, "beta_slow": 1},
]


@pytest.fixture(scope="module")
def rows():
    return torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tokenizer, tmp_path):
    return saved(peer_of("Llama 2"), tokenizer, tmp_path / "there")


def scaled(folder, scaling):
    """The settings of transformers 4, in which most files are."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["rope_parameters"]
    path.write_text(json.dumps({**settings, "rope_theta": 1e4, "rope_scaling": scaling}))


@pytest.mark.parametrize("scaling", READ, ids=str)
def test_as_transformers_reads_them(folder, rows, scaling):
    scaled(folder, scaling)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (load_model(folder)[0](rows) - logits_of(peer, rows)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope_type 'dynamic' is not read here, only linear"),
        ({"type": "su", "factor": 2.0}, "rope_type 'su' is not read here.* choose a model"),
        ({"factor": 2.0}, "factor are not known here for default; remove them if"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 3}, "beta_fast are not known here for lin"),
    ],
)
def test_what_may_change_the_model_is_refused_with_a_remedy(folder, scaling, message):
    scaled(folder, scaling)
    with pytest.raises(SettingError, match=rf"config\.json: rope_parameters: {message}"):
        load_model(folder)


@pytest.mark.parametrize("outside", [8, 16, 64])
@pytest.mark.parametrize("scaling", [{"rope_type": "yarn", "factor": 4.0}, READ[4], READ[2]])
def test_the_length_of_pretraining_outside_counts(folder, rows, scaling, outside):
    scaled(folder, scaling)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "original_max_position_embeddings": outside}))
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (load_model(folder)[0](rows) - logits_of(peer, rows)).abs().max() <= 1e-4


DEFAULT, LINEAR = {"rope_type": "default", "rope_theta": 1e4}, {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        (DEFAULT, LINEAR),
        ({**LINEAR, "rope_theta": 1e4}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope_type": "yarn", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_two_scalings_that_contradict_each_other(folder, newer, older):
    scaled(folder, older)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": newer}))
    with pytest.raises(SettingError, match=r"config\.json: rope_scaling: it contradicts"):
        load_model(folder)


def test_two_scalings_that_agree(folder, rows):
    scaled(folder, LINEAR)
    expected = load_model(folder)[0](rows)
    path = folder / "config.json"
    newer = {"rope_type": "linear", "factor": 2, "rope_theta": 1e4, "beta_fast": None}
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": newer}))
    assert torch.equal(load_model(folder)[0](rows), expected)
