"""How fast the command line starts, and what its help names."""

import os
import subprocess
import sys

from typer.main import get_command

from culm.cli import app

VERBS = list(get_command(app).commands)


def cpu_seconds(code: str) -> float:
    """Of a fresh interpreter; the least of three, since other processes disturb."""
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = os.times()
        user = after.children_user - before.children_user
        spent.append(user + after.children_system - before.children_system)
    return min(spent)


def test_help_is_fast_and_light():
    code = (
        "import sys\nsys.argv = ['culm', '--help']\nfrom culm.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert cpu_seconds(code) < 0.6


def test_import_is_fast():
    assert cpu_seconds("import culm") < 0.3


def test_the_help_of_a_verb_imports_no_torch():
    code = (
        "import sys\nfrom culm.cli import app\n"
        f"for verb in {VERBS}:\n"
        "    app([verb, '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_verbs_are_those_of_the_readme():
    listed = {
        "quickstart", "tokenize", "prepare", "plan", "train", "eval", "generate", "chat", "serve",
        "quantize", "export", "import", "inspect", "bench", "schema", "doctor",
    }  # fmt: skip
    assert listed <= set(VERBS)


def test_the_help_groups_all_verbs(culm):
    _, out, _ = culm("--help")
    assert all(command.rich_help_panel for command in get_command(app).commands.values())
    assert " Commands " not in out
