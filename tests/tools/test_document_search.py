"""Search in a folder: the best documents come first, and no path leads out."""

import os

import pytest

from culm.config import SettingError
from culm.tools.documents import SHOWN, Documents
from culm.tools.function import run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.txt").write_text("the secret word is zebra")
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / "rome.md").write_text("Rome is a town. Its river is the Tiber. " + "word " * 200)
    (root / "deep" / "paris.txt").write_text("Paris is a town at a river, the Seine.")
    (root / "long.txt").write_text("".join(f"{n:09} " for n in range(1000)))
    (root / "image.png").write_bytes(b"zebra")
    (root / ".hidden.txt").write_text("zebra")
    os.symlink(tmp_path / "secret.txt", root / "link.txt")
    os.symlink(tmp_path, root / "up")
    return root


@pytest.fixture
def ask(folder):
    search, open_ = Documents(folder).functions()

    def ask(query=None, **opened):
        return run(open_, opened, 5) if query is None else run(search, {"query": query}, 5)

    return ask


def test_the_best_document_comes_first(ask):
    assert ask("which river has Paris?").text.splitlines()[0] == "deep/paris.txt"
    assert ask("tibers").text.splitlines()[0] == "rome.md"  # by word stems
    assert ask("nothingofthis").text == "no document has these words"


@pytest.mark.parametrize(
    "query", ['"', 'river" OR "', "path: x", "NEAR(a b)", "* AND NOT", "'; DROP TABLE pages; --"]
)
def test_a_query_is_words_and_no_program(ask, query):
    ask(query)
    assert ask("Seine").text.startswith("deep/paris.txt")


def test_documents_are_read_page_by_page(ask):
    text = ask(path="long.txt").text
    assert text.startswith("000000000 000000001")
    assert text.endswith(f"[2,000 characters follow; start={SHOWN}]")
    assert ask(path="long.txt", start=SHOWN).text.endswith("000000999 ")
    assert ask(path="long.txt", start=10**9).text == "(no text)"


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "link.txt", "up/secret.txt", "/etc/passwd", "deep/../../secret.txt", "",
     ".hidden.txt", "image.png", "deep", "rome.md\x00", "deep/../rome.md"],
)  # fmt: skip
def test_no_path_leaves_the_folder(ask, path):
    assert ask(path=path).failed
    assert ask("zebra secret").text == "no document has these words"


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(SettingError, match="no text files"):
        Documents(tmp_path)
    with pytest.raises(SettingError, match="no folder"):
        Documents(tmp_path / "none")
