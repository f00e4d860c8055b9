"""The name of a served model."""

from pathlib import Path

import pytest

from culm.serve.settings import served_name


@pytest.mark.parametrize(
    ("path", "run", "name"),
    [
        ("runs/chat/model", True, "chat"),  # of a run: its final weights
        ("runs/chat", True, "chat"),
        ("downloads/model", False, "model"),  # any other folder of this name
        ("exported/q4.gguf", False, "q4.gguf"),
    ],
)
def test_a_model_is_served_under_the_name_of_its_run_or_folder(
    path: str, run: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / path).mkdir(parents=True)
    if run:
        (tmp_path / "runs" / "chat" / "run.yaml").write_text("")
    assert served_name(path) == served_name(str(tmp_path / path)) == name
    monkeypatch.chdir(tmp_path / path)
    assert served_name(".") == name


def test_a_model_of_the_hub_has_its_full_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert served_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    assert served_name("Qwen/Qwen3-0.6B") == "Qwen3-0.6B"
