"""The attention backend of this machine: tried, reported, and refused if it does not work."""

import pytest
import torch

from culm.config import SettingError
from culm.model import backend
from culm.model.attention.gqa import GQA
from culm.model.backend import choose_backend, trial
from culm.model.transformer import TransformerConfig

CPU = torch.device("cpu")


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(backend, "say", lines.append)
    monkeypatch.setattr("culm.model.trunk.say", lines.append)
    return lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
def test_a_cpu_runs_these(backend, training, dtype):
    assert choose_backend(CPU, backend, dtype, training) == backend
    compiled = trial(CPU, "flash_cpu", torch.bfloat16, training) is None
    usual = "flash_cpu" if compiled and dtype == torch.bfloat16 else "blocks"
    assert choose_backend(CPU, "auto", dtype, training) == usual


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            "flex",
            "train.attention_backend: flex does not train in float32 on cpu: FlexAttention has no "
            "backward",
        ),
        (
            "flash2",
            "train.attention_backend: flash2 does not train in float32 on cpu: Could not run",
        ),
        (
            "flash3",
            "train.attention_backend: flash3 does not train in float32 on cpu: No module named",
        ),
    ],
)
def test_what_cannot_run_here_is_refused(wanted, words):
    with pytest.raises(SettingError, match=words) as refused:
        choose_backend(CPU, wanted, training=True)
    assert str(refused.value).endswith("; use train.attention_backend=auto")
    assert "\n" not in str(refused.value)


def test_a_kernel_that_is_wrong_is_refused(monkeypatch):
    right = backend.attend

    def off(q, k, v, context, rule, backend):
        return right(q, k, v, context, rule, "blocks") + (0.1 if backend == "sdpa" else 0.0)

    monkeypatch.setattr(backend, "attend", off)
    assert trial.__wrapped__(CPU, "sdpa", torch.float32, False) == "its result is off by 0.1"
    assert trial.__wrapped__(CPU, "blocks", torch.float32, False) is None


def test_a_gpu_whose_kernels_fail_computes_in_blocks_and_says_so(monkeypatch, said):
    monkeypatch.setattr(backend, "trial", lambda *_: "no kernel image")
    assert choose_backend(torch.device("cuda"), "auto") == "blocks"
    assert said == ["Attention backend: blocks, because sdpa does not run on cuda: no kernel image"]


def test_layers_that_fall_back_to_blocks_are_reported(said):
    attention = (GQA(heads=2), GQA(heads=2, softcap=5.0))
    config = TransformerConfig(vocabulary=9, width=8, layers=4, attention=attention)
    model = config.build()
    assert model.set_backend("sdpa") == 2
    assert [block.attention.backend for block in model.blocks] == ["sdpa", "blocks"] * 2
    fallen = "2 of 4 layers fall back to the 'blocks' attention backend"
    assert said == [f"{fallen}; sdpa does not support them."]
    said.clear()
    assert model.set_backend("blocks") == 0
    assert said == []
