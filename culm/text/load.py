"""`culm.load`: a language model from a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from culm.concept.model import ConceptModel
from culm.config import SettingError
from culm.convert.card import WITHOUT_THOUGHTS, thinks
from culm.convert.load import read
from culm.engine.speculation import Speculation
from culm.log import say
from culm.model.quantized_cache import CacheKind
from culm.text.concepts import ConceptLanguageModel
from culm.text.language_model import LanguageModel


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    context: int | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    cache: CacheKind = "plain",
    speculate: Speculation | None = None,
    draft: str | Path | None = None,
    tokens_per_step: int = 1,
) -> LanguageModel:
    """A model from what `path` names: a run or model folder of Culm, a Hugging Face folder or hub
    id, a `.gguf` file, or a folder with an adapter, which is merged into the base that it names.

    device: "cpu", "cuda", "mps", "xpu"; "auto" takes the first CUDA device, else the CPU. dtype:
    of weights and activations, such as "bfloat16"; "auto" takes the fastest on this machine; the
    default is float32 on a CPU, bfloat16 elsewhere and for quantised weights. context, cache,
    speculate, tokens_per_step: see `LanguageModel`. draft: path of a smaller model with the same
    tokenizer, which drafts tokens in place of `speculate`.
    adapter: a PEFT folder, or the run that trained it, to attach to its base `path`
    (`culm.adapt.merge` merges it). adapters: several of them by name; each call chooses one with
    `adapter=NAME`, or none. The base is in memory once.

    Raises:
        SettingError: `path` cannot be read as a model, the adapter is for another base, or the
            draft model has another tokenizer.
    """
    if draft is not None and speculate is not None:
        raise SettingError(f"draft: speculate={speculate} drafts tokens already; give one of them")
    parts = read(path, device, dtype, adapter, adapters, mtp=speculate == "mtp")
    if thinks(parts[0].trained_on):
        say(f"{path}: {WITHOUT_THOUGHTS}.")
    if isinstance(parts[0], ConceptModel):
        for name, given in (
            ("draft", draft), ("speculate", speculate), ("tokens_per_step", tokens_per_step - 1)
        ):  # fmt: skip
            if given:
                raise SettingError(
                    f"{name}: the sentences of concepts are written token by token, without "
                    "drafts; leave it out"
                )
        return ConceptLanguageModel(parts[0], parts[1], context, cache)
    if draft is None:
        return LanguageModel(*parts, context, cache, speculate, tokens_per_step)
    smaller, tokenizer = read(draft, device, dtype)
    if tokenizer.fingerprint != parts[1].fingerprint:
        raise SettingError(
            f"{draft}: its tokenizer is not that of {path}; draft with a model that has the same"
        )
    return LanguageModel(*parts, context, cache, smaller.eval())
