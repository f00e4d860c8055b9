"""The card of a model folder: what the model is, what it was trained on and how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from culm.adapt.quantize.linear import QuantizedLinear
from culm.model.transformer import Transformer

PLAIN_TEXT = "plain text"
THOUGHTS = "thoughts in place of steps"
WITHOUT_THOUGHTS = (
    "this model learned to answer after continuous thoughts, which generated texts and other "
    "programs do not have: only the measure `thoughts` gives it them"
)
NAME, FENCE = "README.md", "---\n"
REWARD = """\
```bash
culm train grpo start=POLICY 'train.reward={kind: model, path: path/of/this/folder}'
```
"""


def card(model: Transformer, name: str, library: str = "culm", note: str = "") -> str:
    """README.md of a model folder, with the front matter that the Hugging Face hub reads."""
    config, stages = model.config, model.trained_on
    kinds = [str(m.settings["kind"]) for m in model.modules() if isinstance(m, QuantizedLinear)]
    packed = "".join(f", {kinds.count(kind)} layers in {kind}" for kind in sorted(set(kinds)))
    numbers = sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    numbers -= model.embed.weight.numel() if config.tied else 0
    size = f" {numbers / 1e6:,.2f} million parameters," if not kinds else ""
    added = "".join(f"\n\n{text}" for text in (_training(stages), note) if text)
    rewards = config.head == "scalar"
    task = "text-classification" if rewards else "text-generation"
    facts = {"library_name": library, "pipeline_tag": task}
    front = yaml.safe_dump(
        {**facts, **({"trained_on": list(stages)} if stages else {})},
        sort_keys=False, allow_unicode=True,
    )  # fmt: skip
    return f"""\
{FENCE}{front}{FENCE}
# {name}

A {"reward" if rewards else "language"} model made with Culm:{size} {config.layers} layers of
width {config.width}, a vocabulary of {config.vocabulary:,} tokens, a context of \
{config.context:,} tokens{packed}.{added}

{REWARD if rewards else _example(stages)}"""


def _example(stages: Sequence[str]) -> str:
    chats = stages and not is_base(stages)
    call = 'chat("Who are you?")' if chats else 'generate("Once upon a time", max_tokens=50)'
    return f"""\
```python
import culm

model = culm.load("path/of/this/folder")
print(model.{call})
```
"""


def _training(stages: Sequence[str]) -> str:
    if not stages:
        return ""
    kind = "This is a base model: it continues a text.\n" if is_base(stages) else ""
    note = f" Note: {WITHOUT_THOUGHTS}." if thinks(stages) else ""
    return f"{kind}It was trained on {', then on '.join(stages)}.{note}"


def thinks(stages: Sequence[str]) -> bool:
    """Whether a model with these stages learned to think in its states before it answers."""
    return bool(stages) and stages[-1].startswith(THOUGHTS)


def is_base(stages: Sequence[str]) -> bool:
    """Whether a model with these stages learned to continue plain text, and nothing else."""
    return bool(stages) and all(stage.startswith(PLAIN_TEXT) for stage in stages)


def write_card(
    model: Transformer, folder: Path, name: str, library: str = "culm", note: str = ""
) -> None:
    """Put the card into the folder."""
    (folder / NAME).write_text(card(model, name, library, note), encoding="utf-8")


def read_trained_on(folder: Path) -> tuple[str, ...]:
    """The stages on the card of a folder; none are known without our card."""
    path = folder / NAME
    if not path.is_file():
        return ()
    before, *rest = path.read_text(encoding="utf-8", errors="replace").split(FENCE, 2)
    if before or len(rest) < 2:
        return ()
    try:
        front = yaml.safe_load(rest[0])
    except yaml.YAMLError:  # somebody else's
        return ()
    return stages_in(front.get("trained_on")) if isinstance(front, dict) else ()


def stages_in(value: object) -> tuple[str, ...]:
    """The stages that a file names, where it holds a list of texts."""
    texts = value if isinstance(value, list | tuple) else ()
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()
