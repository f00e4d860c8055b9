"""Cloudflare Workers AI: a LoRA adapter for one of the base models that run there.

The limits are those of Cloudflare's page "Fine-tuned inference with LoRA adapters"; what it would
refuse at the upload, or ignore, is refused here.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from culm.atomic import atomic
from culm.config import SettingError
from culm.convert import peft
from culm.convert.peft.folder import WEIGHTS
from culm.convert.peft.settings import NAME
from culm.dtype import cast, dtype_of
from culm.files import read_json, refuse_nonempty, write_json
from culm.safetensors import read_safetensors, write_safetensors
from culm.ship.target import TargetConfig, refuse_options

RANK, MEGABYTES = 32, 300
TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)


@dataclass(frozen=True)
class Base:
    """A base model of Workers AI. model: its name there. kind: `model_type`. Then its sizes."""

    model: str
    kind: Literal["llama", "mistral", "gemma"]
    layers: int
    width: int
    hidden: int
    queries: int
    keys: int

    def sizes(self, layer: str) -> tuple[int, int] | None:
        """Inputs and outputs of a linear layer; None if there is none of this name."""
        return {
            "q_proj": (self.width, self.queries), "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys), "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.hidden), "up_proj": (self.width, self.hidden),
            "down_proj": (self.hidden, self.width),
        }.get(layer)  # fmt: skip


BASES = {
    "mistral-7b-instruct-v0.2": Base(
        "@cf/mistral/mistral-7b-instruct-v0.2-lora", "mistral", 32, 4096, 14336, 4096, 1024
    ),
    "llama-2-7b-chat-hf": Base(
        "@cf/meta-llama/llama-2-7b-chat-hf-lora", "llama", 32, 4096, 11008, 4096, 4096
    ),
    "gemma-2b-it": Base("@cf/google/gemma-2b-it-lora", "gemma", 18, 2048, 16384, 2048, 256),
    "gemma-7b-it": Base("@cf/google/gemma-7b-it-lora", "gemma", 28, 3072, 24576, 4096, 4096),
}


class Cloudflare(TargetConfig):
    """base: model of Workers AI that the adapter was trained on; by default the one that the
    adapter names.
    """

    kind: Literal["cloudflare"] = "cloudflare"
    base: (
        Literal["mistral-7b-instruct-v0.2", "llama-2-7b-chat-hf", "gemma-2b-it", "gemma-7b-it"]
        | None
    ) = None

    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        refuse_options("cloudflare", family=family)
        folder = _adapter(source)
        settings = read_json(folder / NAME)
        name = self.base or _named(settings, folder)
        rank = _rank(settings, folder)
        tensors = dict(read_safetensors(folder / WEIGHTS))
        _check_tensors(tensors, rank, BASES[name], name, folder)
        if dtype:
            tensors = {name: cast(t, dtype_of(dtype), name) for name, t in tensors.items()}
        _check_size(tensors)
        refuse_nonempty(out, NAME)
        with atomic(out, replaces=("lineage.json",)) as fresh:
            fresh.mkdir()
            write_safetensors(fresh / WEIGHTS, tensors)
            write_json(fresh / NAME, {**settings, "model_type": BASES[name].kind})
            (fresh / "README.md").write_text(_card(out.name, name), encoding="utf-8")


def _adapter(source: str) -> Path:
    path = Path(source).expanduser()
    for folder in (path, path / "adapter"):
        if peft.is_adapter(folder):
            return folder
    raise SettingError(
        f"{source}: no adapter folder; Workers AI takes no models, only LoRA adapters for its own "
        "base models: train one with train=lora and export that run"
    )


def _named(settings: dict[str, Any], folder: Path) -> str:
    base = str(settings.get("base_model_name_or_path") or "")
    named = base.rstrip("/").rpartition("/")[2].lower()
    if named in BASES:
        return named
    raise SettingError(
        f"{folder}: its base {base!r} is not one of {', '.join(BASES)}, which Workers AI takes "
        "adapters for; if it is a copy of one, name it: --for '{kind: cloudflare, base: NAME}'"
    )


def _rank(settings: dict[str, Any], folder: Path) -> int:
    """The rank of all layers, of an adapter that Workers AI applies as it is."""
    rank = settings.get("r")
    if not isinstance(rank, int) or not 0 < rank <= RANK:
        raise SettingError(f"{folder}: rank {rank!r}; Workers AI takes ranks up to {RANK}")
    refused = {
        "use_dora": "DoRA", "use_rslora": "the scale of rsLoRA", "rank_pattern": "several ranks",
        "alpha_pattern": "several alphas", "modules_to_save": "layers that were trained in full",
    }  # fmt: skip
    for name, what in refused.items():
        if settings.get(name):
            raise SettingError(f"{folder}: {name}: Workers AI does not apply {what}")
    return rank


def _check_tensors(
    tensors: dict[str, Tensor], rank: int, base: Base, name: str, folder: Path
) -> None:
    if not tensors:
        raise SettingError(f"{folder}: the adapter has no layers")
    for tensor_name, tensor in tensors.items():
        found = TENSOR.fullmatch(tensor_name)
        sizes = base.sizes(found[2]) if found else None
        if found is None or sizes is None or int(found[1]) >= base.layers:
            raise SettingError(f"{folder}: {tensor_name}: {name} has no such layer")
        fits = (rank, sizes[0]) if found[3] == "A" else (sizes[1], rank)
        if tensor.shape != fits:
            raise SettingError(
                f"{folder}: {tensor_name} is {tuple(tensor.shape)}, which does not fit {name} with "
                f"rank {rank}"
            )


def _check_size(tensors: dict[str, Tensor]) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    if size >= MEGABYTES:
        raise SettingError(
            f"--for cloudflare: the adapter has {size:.0f} MB, and Workers AI takes less than "
            f"{MEGABYTES}; write it with --dtype float16, or train a smaller rank"
        )


def _card(folder: str, base: str) -> str:
    word, text = shlex.quote(folder), json.dumps(folder)
    return f"""\
# {folder}

A LoRA adapter for `{BASES[base].model}` of Cloudflare Workers AI. Next to this folder:

```bash
npx wrangler ai finetune create {BASES[base].model} {word} {word}
```

In a Worker, with the template of the base model:

```js
const answer = await env.AI.run("{BASES[base].model}", {{
  messages: [{{role: "user", content: "Hello"}}], lora: {text},
}});
```
"""
