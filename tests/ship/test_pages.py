"""The commands of the pages on deployment run, on a tiny model where the page has a trained one."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hub_stub import REPO, Hub, hub
from test_targets import adapter

from culm.cli import main
from culm.config import parse
from culm.convert import native
from culm.model.transformer import TransformerConfig

assert hub  # a fixture
ROOT = Path(__file__).parents[2]
PAGES = ("ollama", "vllm", "serverless", "push")
WRITES = ("export", "quantize")


@pytest.fixture
def workplace(tmp_path: Path, chat_tokenizer, monkeypatch) -> Path:
    values = {"vocabulary": 320, "width": 256, "layers": 1, "context": 1024,
              "attention": {"kind": "gqa", "heads": 4}}  # fmt: skip
    model = parse(TransformerConfig, values).build(seed=0)
    native.save(model, chat_tokenizer, tmp_path / "runs" / "books-chat")
    adapter(tmp_path / "runs" / "mistral-poet" / "adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text()
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines() if line]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page: str, workplace: Path, monkeypatch, capsys, hub: Hub) -> None:
    ran = 0
    for program, verb, *rest in commands(page):
        assert program == "culm"
        if verb not in (*WRITES, "push"):
            continue
        rest = [REPO if word == "me/books" else word for word in rest]  # that of the stand-in
        monkeypatch.setattr(sys, "argv", ["culm", verb, *rest])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        assert verb == "push" or Path(rest[1]).is_dir()
        ran += 1
    assert ran
    assert list(hub.tags) == (["v1"] if page == "push" else [])


def test_the_settings_on_the_pages_are_known() -> None:
    from culm.compose import read_value
    from culm.ship.targets import Target

    text = "".join((ROOT / "docs" / "recipes" / f"{page}.md").read_text() for page in PAGES)
    found = re.findall(r"--for '?(\{[^}]*\}|\w+)", text)
    assert len(found) > 8
    for given in found:
        parse(Target, read_value("--for", given))


def test_the_commands_of_vllm_are_those_of_the_folder(workplace: Path) -> None:
    from culm.ship.targets.vllm import commands as served

    page = (ROOT / "docs" / "recipes" / "vllm.md").read_text()
    for line in served("books-vllm", 1024, "", 1).values():
        assert line in page
