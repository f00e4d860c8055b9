"""The pages on new parts: their code in its place really is one file and one name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r'```python title="(culm/\S+)"\n(.*?)```', re.DOTALL)

ATTENTION = """
import torch
from culm.config import parse
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.context import Context
from culm.model.transformer import TransformerConfig

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
    separate = torch.cat([model(part) for part in tokens.split(10, dim=1)], dim=1)
    assert (packed - separate).abs().max() < 1e-5
    cache, pieces, start = model.cache(2, 48), [], 0
    for size in (7, 1, 1, 12, 9):
        positions = torch.arange(start, start + size).expand(2, -1)
        context = Context(positions, cache=cache.view(start + size))
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

# What a run with the new part must show; `run` trains the settings of a stage.
RAFT = """
base = run("pretrain", steps=2, optimizer=muon, data=tasks)
short = {"kind": "length", "longest": 6, "margin": 6}  # the sooner an answer ends, the better
rollout = {"group": 4, "max_tokens": 6, "epochs": 2}
more = {"objective": {"kind": "raft", "least": -0.9}, "rollout": rollout, "reward": short,
        "schedule": "constant"}
trained = run("rollouts", start=base, steps=60, batch_size=32, micro_batch_size=16,
              optimizer={"kind": "adamw", "rate": 1e-2}, data=asked, **more)
lines = read_lines(trained / "metrics.jsonl")
assert all(0 <= line["imitated"] <= 0.25 for line in lines)
rewards = [line["reward"] for line in lines]
assert rewards[0] < -0.9 and rewards[-1] > -0.5, rewards
half = run("half", start=base, steps=3, batch_size=32, micro_batch_size=16,
           optimizer={"kind": "adamw", "rate": 1e-2}, data=asked, **more)
again = run("half", start=base, steps=6, batch_size=32, micro_batch_size=16,
            optimizer={"kind": "adamw", "rate": 1e-2}, data=asked, **more)
for one, two in zip(lines, read_lines(again / "metrics.jsonl")):
    assert one["loss"] == two["loss"], "resumed in the middle of a rollout"
plan("grpo", f"start={base}", "train.objective=raft", "train.steps=2")
"""

ADAGRAD = """
rates = {"kind": "adagrad", "rate": 3e-2}
trained = run("adagrad", steps=60, optimizer=rates, data=tasks)
lines = read_lines(trained / "metrics.jsonl")
assert lines[-1]["loss"] < 0.7 * lines[0]["loss"], (lines[0], lines[-1])
run("half", steps=30, optimizer=rates, data=tasks, checkpoint={"every_steps": 30},
    schedule="constant")
again = run("half", steps=40, optimizer=rates, data=tasks, schedule="constant")
whole = run("whole", steps=40, optimizer=rates, data=tasks, schedule="constant")
for one, two in zip(*(read_lines(f / "metrics.jsonl") for f in (again, whole))):
    assert one["loss"] == two["loss"]
plan("pretrain", "train.optimizer=adagrad", "train.steps=2")
"""

TRACKER = """
trackers = {"kind": "csv", "columns": ["loss", "rate"]}
folder = run("tracked", steps=3, optimizer=muon, data=tasks, trackers=trackers)
run("tracked", steps=5, optimizer=muon, data=tasks, trackers=trackers)
written = (folder / "steps.csv").read_text().splitlines()
assert written[0] == "step,loss,rate"
lines = read_lines(folder / "metrics.jsonl")
assert [line.split(",")[0] for line in written[1:]] == ["1", "2", "3", "4", "5"]
assert [float(line.split(",")[1]) for line in written[1:]] == [one["loss"] for one in lines]
"""

MEASURE = """
measures = {"held_out": {"tokens": 400}, "top_accuracy": {"tokens": 400}}
text = {"path": "text.jsonl", "held_out": 0.2}
folder = run("measured", steps=60, optimizer=muon, data=text, eval={"measures": measures})
first, *_, last = read_lines(folder / "eval.jsonl")
assert 0 <= first["top_accuracy"] < last["top_accuracy"] <= 1, (first, last)
assert last["bits_per_byte"] < first["bits_per_byte"]
"""

FORMAT = """
pairs = [{"en": f"word {n}", "de": f"Wort {n}"} for n in range(60)]
pairs.append({"en": "Ja", "de": "Ja", "note": "the same"})
Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\\n" for pair in pairs))
translation = {"kind": "translation", "target": "de", "language": "German"}
data = {"path": "pairs.jsonl", "held_out": 0.2, "format": translation}
folder = run("german", steps=40, optimizer=muon, data=data)
lines = read_lines(folder / "metrics.jsonl")
assert lines[-1]["loss"] < 0.5 * lines[0]["loss"], (lines[0], lines[-1])
told = json.loads((folder / "results.json").read_text())["data"]
assert any(line.startswith("1 records are the same in both languages") for line in told), told
Path("bad.jsonl").write_text(json.dumps({"en": "a", "fr": "b"}) + "\\n")
try:
    run("bad", steps=1, data={**data, "path": "bad.jsonl"})
except ValueError as error:
    assert "bad.jsonl: line 1: no text in 'en' and 'de'; it has en (text), fr" in str(error), error
else:
    raise AssertionError("a record without a translation was accepted")
plan("sft", f"start={folder}", "data=chat", "data.path=pairs.jsonl", "train.steps=2",
     "data.format={kind: translation, target: de, language: German}", "folder=runs/planned")
"""

TASK = """
from culm.task.weekdays import Weekdays

days = Weekdays(longest=9)
asked_in = {split: {days.question(split, n, 0).prompt for n in range(200)}
            for split in ("train", "test")}
assert asked_in["train"] and asked_in["test"] and not asked_in["train"] & asked_in["test"]
question = days.question("test", 3, 1)
assert question == days.question("test", 3, 1)
assert days.score(question, f" {question.answer} ") == 1 and days.score(question, "") == 0
data = {"tasks": [{"kind": "weekdays", "longest": 9}], "questions": 300, "format": "chat"}
measure = {"measures": {"scores": {"tasks": ["weekdays"], "questions": 8}}}
base = run("days", steps=40, optimizer=muon, data=data, eval=measure)
lines = read_lines(base / "metrics.jsonl")
assert lines[-1]["loss"] < 0.5 * lines[0]["loss"], (lines[0], lines[-1])
results = json.loads((base / "results.json").read_text())
assert 0 <= results["scores"]["weekdays"]["value"] <= 1, results
rollout = {"group": 4, "max_tokens": 12}
tuned = run("rl", start=base, steps=2, data={"tasks": data["tasks"]}, batch_size=8,
            objective="grpo", rollout=rollout, optimizer=muon)
assert all(0 <= line["reward"] <= 1 for line in read_lines(tuned / "metrics.jsonl"))
chosen = ["data.tasks=[weekdays]", "eval.measures.scores.tasks=[weekdays]", "train.steps=2"]
plan("sft", f"start={base}", *chosen, "folder=runs/planned")
plan("grpo", f"start={base}", *chosen, "folder=runs/planned")
"""

PREAMBLE = """
import json, random, subprocess, sys
from pathlib import Path
import torch
from culm.config import parse
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train

torch.set_num_threads(1)
task = {"kind": "letters", "name": "count", "operation": "count", "shortest": 2, "longest": 3}
tasks = {"tasks": [task], "questions": 300, "format": "chat"}
asked = {"tasks": [task]}
muon = {"kind": "muon", "rate": 0.01}
words = "the quick brown fox jumps over a lazy dog".split()
chance = random.Random(0)
Path("text.jsonl").write_text("".join(
    json.dumps({"text": " ".join(chance.choices(words, k=12))}) + "\\n" for _ in range(80)
))


def run(name, start=None, data=None, eval={}, **trained):
    values = {"device": "cpu", "folder": f"runs/{name}", "data": data, "eval": eval}
    if start is None:
        values["tokenizer"] = {"kind": "bytes", "specials": True}
        values["model"] = {"vocabulary": 262, "width": 32, "layers": 2, "context": 64,
                           "attention": {"kind": "gqa", "heads": 4}}
    else:
        values["start"] = str(start)
    values["train"] = {"batch_size": 8, "precision": "fp32", **trained}
    return train(parse(RunConfig, values)).folder


def plan(*settings):
    done = subprocess.run([sys.executable, "-m", "culm", "plan", *settings],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No problem found" in done.stdout
"""

PAGES = {
    "attention": ATTENTION,
    "objective": PREAMBLE + RAFT,
    "optimizer": PREAMBLE + ADAGRAD,
    "tracker": PREAMBLE + TRACKER,
    "measure": PREAMBLE + MEASURE,
    "format": PREAMBLE + FORMAT,
    "task": PREAMBLE + TASK,
}


def package(root: Path, page: str, folder: Path) -> None:
    """A copy of the package with the page's file in it, and its name in the union."""
    text = (root / "docs" / "recipes" / f"{page}.md").read_text()
    (path, code), (registry, name) = BLOCK.findall(text)
    shutil.copytree(root / "culm", folder / "culm", ignore=shutil.ignore_patterns("__pycache__"))
    assert not (folder / path).exists()
    (folder / path).write_text(code)
    added, line = name.strip().split("\n\n")
    union = folder / registry
    before = union.read_text()
    variable = line.split(" = ")[0]
    [known] = re.findall(rf"^{variable} = one_of\([^)]*\)", before, re.MULTILINE)
    new = re.fullmatch(r"from \S+ import (\w+)", added)[1]
    ours, theirs = ("".join(text.split()) for text in (line, known))
    assert ours == theirs.replace(")", f"|{new})")  # the page is up to date
    first = before.index("from culm.")
    union.write_text(before[:first] + added + "\n" + before[first:].replace(known, line))


QUICK = set(PAGES) - {"task", "optimizer", "format"}  # the others take half a minute each


@pytest.mark.parametrize(
    "page", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAGES]
)
def test_the_page_is_one_file_and_one_name(page: str, root: Path, tmp_path: Path) -> None:
    package(root, page, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PAGES[page]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_settings_name_the_new_part(root: Path, tmp_path: Path) -> None:
    package(root, "attention", tmp_path)
    setting = "model.attention={kind: differential, heads: 5}"
    done = subprocess.run(
        [sys.executable, "-m", "culm", "plan", "pretrain", "model=tiny", setting],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "attention[0].heads: 5 pairs do not divide width=384" in done.stderr
