"""The card of a model folder: what the model is and how to run it."""

from __future__ import annotations

from pathlib import Path

from culm.adapt.quantize.linear import QuantizedLinear
from culm.model.transformer import Transformer


def card(model: Transformer, name: str, library: str = "culm", note: str = "") -> str:
    """README.md of a model folder, with the front matter that the Hugging Face hub reads."""
    config = model.config
    kinds = [str(m.settings["kind"]) for m in model.modules() if isinstance(m, QuantizedLinear)]
    packed = "".join(f", {kinds.count(kind)} layers in {kind}" for kind in sorted(set(kinds)))
    numbers = sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    numbers -= model.embed.weight.numel() if config.tied else 0
    size = f" {numbers / 1e6:,.2f} million parameters," if not kinds else ""
    added = f"\n\n{note}" if note else ""
    return f"""\
---
library_name: {library}
pipeline_tag: text-generation
---

# {name}

A language model made with Culm:{size} {config.layers} layers of
width {config.width}, a vocabulary of {config.vocabulary:,} tokens, trained on {config.context:,} \
tokens at once{packed}.{added}

```python
import culm

model = culm.load("path/of/this/folder")
print(model.generate("Once upon a time", max_tokens=50))
```
"""


def write_card(
    model: Transformer, folder: Path, name: str, library: str = "culm", note: str = ""
) -> None:
    """Put the card into the folder."""
    (folder / "README.md").write_text(card(model, name, library, note), encoding="utf-8")
