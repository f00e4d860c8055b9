"""Keyword settings of text generation, written once for every method that generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from culm.engine.sampling import Sampling

# As in llama.cpp, litgpt and nanoGPT: small models ramble at 1, and repeat themselves at 0.
TEXT_TEMPERATURE = 0.8
CHAT_TEMPERATURE = 0.0  # a question has an answer, which should not depend on chance


class GenerationOptions(TypedDict, total=False):
    """Keywords of `LanguageModel.generate`, `stream`, `chat` and `chat_stream`.

    temperature: logits are divided by it; 0 takes the most likely token. None, the default, is 0.8
        for the continuation of a text and 0 for a chat, here as on the command line.
    top_k: sample from the k most likely tokens; 0, the default, from all.
    top_p: nucleus sampling, from the smallest set of tokens with this total probability; 1.0.
    min_p: drop tokens below this fraction of the top token's probability; 0.0.
    typical_p: sample from tokens with this total probability whose information is nearest to the
        entropy; 1.0.
    repetition_penalty, presence_penalty, frequency_penalty: as in `Sampling`; off by default.
    seed: the same seed gives the same text; None, the default, takes a new one.
    stop: a string, or several, that ends the text and does not appear in it.
    adapter: name of an adapter that was loaded with the model; None uses the base model.
    """

    temperature: float | None
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    adapter: str | None


class Options(NamedTuple):
    """What `GenerationOptions` say, with defaults filled in."""

    sampling: Sampling
    stops: tuple[str, ...]
    adapter: str | None


SAMPLING = tuple(name for name in GenerationOptions.__annotations__ if name in vars(Sampling()))


def read_options(given: GenerationOptions, temperature: float = TEXT_TEMPERATURE) -> Options:
    """Settings with their defaults. temperature: if none is given.

    Raises:
        TypeError: a keyword is not known.
        ValueError: a value is out of range.
    """
    for name in given:
        if name not in GenerationOptions.__annotations__:
            known = ", ".join(("max_tokens", *GenerationOptions.__annotations__))
            raise TypeError(f"unexpected keyword {name!r}; known: {known}")
    values = {name: given[name] for name in SAMPLING if name in given}  # type: ignore[literal-required]
    if values.get("temperature") is None:
        values["temperature"] = temperature
    sampling = Sampling(**values)
    stop = given.get("stop")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return Options(sampling, stops, given.get("adapter"))
