"""The page on a new attention: its code in its place really is one file and one name."""

import re
import shutil
import subprocess
import sys

import pytest

CHECK = """
import torch
from culm.config import parse
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.context import Context
from culm.model.config import TransformerConfig

model = parse(TransformerConfig, {
    "vocabulary": 40, "width": 32, "layers": 3, "context": 48,
    "attention": [{"kind": "differential", "heads": 2}, {"kind": "gqa", "heads": 4}],
}).build(seed=0).eval()
assert type(model.blocks[2].attention).__name__ == "DifferentialAttention"
tokens = torch.randint(0, 40, (2, 30), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    whole = model(tokens)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 40
    assert torch.equal(model(changed)[:, :20], whole[:, :20])
    assert (model(changed)[:, 20:] != whole[:, 20:]).any(-1).all()
    documents = (torch.arange(30) // 10).expand(2, -1)
    packed = model(tokens, Context((torch.arange(30) % 10).expand(2, -1), documents))
    apart = torch.cat([model(part) for part in tokens.split(10, dim=1)], dim=1)
    assert (packed - apart).abs().max() < 1e-5
    cache, pieces, start = model.cache(2, 48), [], 0
    for size in (7, 1, 1, 12, 9):
        positions = torch.arange(start, start + size).expand(2, -1)
        context = Context(positions, cache=cache, length=start + size)
        pieces.append(model(tokens[:, start:start + size], context))
        start += size
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-5
prompts = [tuple(row[:count].tolist()) for row, count in zip(tokens, (5, 17))]
requests = [Request(prompt, 8, Sampling(temperature=0)) for prompt in prompts]
together = [done.tokens for done in Engine(model, 4).generate(requests)]
assert together == [Engine(model, 1).generate([one])[0].tokens for one in requests]
before = None
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(60):
    loss = -model.train().logprobs(tokens[:, :-1], tokens[:, 1:]).mean()
    before = before or float(loss)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert float(loss) < 0.3 * before, (before, float(loss))
"""


@pytest.fixture(scope="module")
def package(root, tmp_path_factory):
    """A copy of the package with the page's file in it, and its name in the union."""
    page = (root / "docs" / "recipes" / "attention.md").read_text()
    file, name = re.findall(r'```python title="(?:.*?)"\n(.*?)```', page, re.DOTALL)
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(root / "culm", folder / "culm", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "culm" / "model" / "attention" / "differential.py").write_text(file)
    union = folder / "culm" / "model" / "attention" / "__init__.py"
    text = union.read_text()
    [line] = re.findall(r"^Attention = .*$", text, re.MULTILINE)
    assert name.strip() == line.replace(")", " | Differential)")  # the page is up to date
    added = "from culm.model.attention.differential import Differential\n"
    first = text.index("from culm.model")
    union.write_text(text[:first] + added + text[first:].replace(line, name.strip()))
    return folder


def run(package, *line):
    return subprocess.run(
        [sys.executable, *line], cwd=package, capture_output=True, text=True, check=False
    )


def test_it_is_causal_cached_packed_and_learns(package):
    done = run(package, "-c", CHECK)
    assert done.returncode == 0, done.stderr


def test_settings_name_it(package):
    setting = "model.attention={kind: differential, heads: 5}"
    done = run(package, "-m", "culm.cli", "plan", "pretrain", "model=tiny", setting)
    assert done.returncode != 0
    assert "attention[0].heads: 5 pairs do not divide width=384" in done.stderr
