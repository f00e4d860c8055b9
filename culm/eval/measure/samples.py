"""Texts that the model continues, for a person to read."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any, Literal

from pydantic import PositiveInt

from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.ability import require_vocabulary
from culm.text.language_model import LanguageModel


class Samples(MeasureConfig):
    """Result: `samples`, each with its `prompt`, `temperature` and `text`.

    texts: the beginnings. temperatures: each text is continued at each of them.
    max_tokens: limit of a continuation, which also ends with the context. while_training: at each
    evaluation, and not only after the last step.
    """

    kind: Literal["samples"] = "samples"
    texts: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (0.8,)
    max_tokens: PositiveInt = 64
    while_training: bool = False

    @property
    def last_step_only(self) -> bool:
        return not self.while_training

    def check(self, subject: Subject) -> None:
        """Each text must leave room for a token."""
        if not self.texts:
            return
        require_vocabulary(subject.model)
        for text in self.texts:
            tokenizer, context = subject.tokenizer, subject.model.config.context
            length = len(tokenizer.start) + len(tokenizer.encode(text))
            if length >= context:
                raise ValueError(
                    f"texts: {text[:40]!r} has {length} tokens, which leaves no room for more in "
                    f"the model's context of {context}; shorten it"
                )

    def measure(self, subject: Subject) -> dict[str, Any]:
        """In the order of the texts, and of the temperatures for each; nothing without texts."""
        if not self.texts:
            return {}
        model = LanguageModel(subject.model, subject.tokenizer)
        wanted = [(text, t) for text in self.texts for t in self.temperatures]
        own = [
            {"prompt": text, "temperature": t, "text": self._continue(model, text, t, subject.seed)}
            for text, t in subject.share(wanted)
        ]
        turns = zip_longest(*subject.ranks.gather(own))
        return {"samples": [sample for sample in chain(*turns) if sample is not None]}

    def _continue(self, model: LanguageModel, text: str, temperature: float, seed: int) -> str:
        room = model.context - len(model.prompt_ids(text))
        return "".join(
            model.stream(text, min(self.max_tokens, room), temperature=temperature, seed=seed)
        )
