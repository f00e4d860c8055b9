"""What `culm board` refuses before it starts."""

import sys

import pytest

from culm.config import SettingError
from culm.verbs import board
from culm.verbs.board import show_board


def test_the_extra_is_named_where_a_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None if name == "uplot" else sys)
    with pytest.raises(SettingError, match=r"pip install 'culm\[board\]'"):
        show_board([str(tmp_path)], "127.0.0.1", 0, None)


@pytest.mark.parametrize(
    ("folder", "host", "words"),
    [
        ("nowhere", "127.0.0.1", "there is no folder"),
        (".", "0.0.0.0", "open to the network"),
        (".", "nowhere.invalid", "set an API key"),
    ],
)
def test_unusable_arguments_are_refused(tmp_path, folder, host, words):
    pytest.importorskip("uplot", reason="uplot-python is not installed")
    with pytest.raises(SettingError, match=words):
        show_board([str(tmp_path / folder)], host, 0, None)
