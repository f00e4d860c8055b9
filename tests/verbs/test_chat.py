"""What `culm chat` says of a model before the dialogue."""

import pytest
from tiny import model as tiny_model

from culm.config import SettingError
from culm.serve.terminal import Terminal
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes
from culm.verbs.chat import chat


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The first line of a chat with a model of these stages."""
    monkeypatch.setattr(Terminal, "run", lambda self: None)

    def talk(*stages: str, template: bool = True) -> str:
        model = tiny_model()
        model.trained_on = stages
        loaded = LanguageModel(model, Bytes(specials=template).build())
        chat(loaded, "runs/my model", None, None, 0.0, 1.0, None)
        return capsys.readouterr().out

    return talk


def test_it_says_what_the_model_was_trained_on(start) -> None:
    assert start("plain text (books)", "dialogues (identity)") == (
        "runs/my model was trained on plain text (books), then on dialogues (identity); ask about "
        "these.\n"
    )
    assert start() == ""  # of a model from elsewhere nothing is known


def test_a_base_model_continues_a_text(start) -> None:
    told = start("plain text (books)", "plain text (notes)")
    assert "is a base model: it was trained on plain text (books), then on plain text (n" in told
    assert "`culm generate 'runs/my model' TEXT`" in told


@pytest.mark.parametrize("stages", [(), ("plain text (books)",)])
def test_a_model_without_a_chat_template_is_refused(start, stages) -> None:
    with pytest.raises(SettingError, match=r"most likely a base model, .*culm generate 'runs/my"):
        start(*stages, template=False)
