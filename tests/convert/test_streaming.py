"""A sharded folder of Hugging Face is imported one tensor at a time, completely or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from culm.config import SettingError
from culm.convert import hf, native
from culm.convert.load import load_model
from culm.model.mlp.gated import SwiGLU
from culm.verbs.import_model import import_model

INDEX = "model.safetensors.index.json"
MEASURE = """
import sys, torch
from pathlib import Path
from culm.convert.load import load_model
from culm.verbs.import_model import import_model
torch.set_num_threads(1)
small, large, out = sys.argv[1:]
def peak():  # not of getrusage, to which the memory of the process that started this one counts
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
import_model(small, out + "/small")  # whatever is needed once
load_model(small)
before = peak()
import_model(large, out + "/large")
streamed = peak()
load_model(large)
print(streamed - before, peak() - before)
"""


def sharded(folder: Path, count: int) -> list[Path]:
    """The same folder with its weights in several files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = names[number * len(names) // count : (number + 1) * len(names) // count]
        save_file({name: weights[name] for name in own}, folder / file)
        places |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return sorted(folder.glob("model-*.safetensors"))


@pytest.fixture
def there(tiny, tokenizer, tmp_path):
    hf.export(tiny(tied=False), tokenizer, tmp_path / "there")
    return sharded(tmp_path / "there", 3)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_streamed_is_what_is_loaded(tiny, tokenizer, tokens, tmp_path, tied):
    model = tiny(tied=tied)
    hf.export(model, tokenizer, tmp_path / "there", torch.bfloat16)
    sharded(tmp_path / "there", 3)
    import_model(tmp_path / "there", tmp_path / "here")
    whole, words = load_model(tmp_path / "there")
    native.save(whole, words, tmp_path / "saved")
    here, saved = (load_file(tmp_path / name / native.WEIGHTS) for name in ("here", "saved"))
    assert here.keys() == saved.keys()
    assert all(torch.equal(here[name], saved[name]) for name in here)
    assert {tensor.dtype for tensor in here.values()} == {torch.bfloat16}
    kept = [json.loads((tmp_path / n / native.SETTINGS).read_text()) for n in ("here", "saved")]
    assert kept[0]["model"] == kept[1]["model"]
    again, _ = load_model(tmp_path / "here")
    assert torch.equal(again(tokens), whole(tokens))


def gone(shards):
    shards[1].unlink()


def cut(shards):
    shards[2].write_bytes(shards[2].read_bytes()[:-8])


def changed(**values):
    def change(shards):
        held = load_file(shards[1])
        name = sorted(held)[0]
        for kind, value in values.items():
            if kind == "value":
                held[name].view(-1)[0] = value
            elif kind == "dtype":
                held[name] = held[name].to(value)
            elif kind == "extra":
                held[value] = torch.ones(3)
            else:
                del held[name]
        save_file(held, shards[1])

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (gone, r"model-00002-of-00003\.safetensors: there is no such file; copy the whole folder"),
        (cut, r"model-00003-of-00003\.safetensors: broken .*truncated: .*; copy it again"),
        (changed(value=float("nan")), r"tensor \S+ contains NaN or infinity.*; use an earlier"),
        (changed(dtype=torch.int8), r"tensor \S+ holds int8, not float32; copy"),
        (changed(dtype=torch.float8_e4m3fn), r"tensor \S+ holds float8_e4m3fn, not float32; copy"),
        (
            changed(extra="model.layers.7.mlp.up_proj.weight"),
            r"1 are unknown: blocks\.#\.mlp\.up\.weight",
        ),
        (changed(extra="visual.patch"), r"1 are unknown: visual\.patch"),
        (changed(missing=True), r"1 are missing: \S+; copy the folder again"),
    ],
)
def test_a_broken_folder_leaves_no_output(there, tmp_path, damage, words):
    damage(there)
    with pytest.raises(SettingError, match=words):
        load_model(tmp_path / "there")
    with pytest.raises(SettingError, match=words):
        import_model(tmp_path / "there", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_the_memory_of_an_import_is_less_than_its_largest_shard(tiny, tokenizer, tmp_path):
    hf.export(tiny(), tokenizer, tmp_path / "small")
    sizes = {"width": 1024, "layers": 8, "mlp": (SwiGLU(hidden=4096),)}
    model = tiny().config.model_copy(update=sizes).build(device="meta").to(torch.bfloat16)
    model.to_empty(device="cpu").tie()
    for weight in model.parameters():
        weight.data.zero_()
    hf.export(model, tokenizer, tmp_path / "large", torch.bfloat16)
    shards = [path.stat().st_size for path in sharded(tmp_path / "large", 4)]
    line = [sys.executable, "-c", MEASURE, *(str(tmp_path / n) for n in ("small", "large", "out"))]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    streamed, loaded = map(int, done.stdout.split()[-2:])
    assert streamed < 1.2 * max(shards), (streamed, shards)
    assert loaded > 2 * max(shards), (loaded, shards)  # what is measured is measured
