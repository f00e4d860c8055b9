"""Fill-in-the-middle (arXiv 2207.14255): documents whose middle comes last.

PSM   <prefix> first part <suffix> last part <middle> the part between
SPM   <prefix> <suffix> last part <middle> first part, the part between
"""

from __future__ import annotations

import hashlib

from pydantic import Field, NonNegativeInt

from culm.config import Config, SettingError
from culm.seed import keyed
from culm.tokenizer.chat import FIM_TOKENS
from culm.tokenizer.offsets import any_of
from culm.tokenizer.tokenizer import Tokenizer

# Those of Qwen and of ours, StarCoder, DeepSeek and Code Llama: prefix, suffix, middle.
SENTINELS = (
    FIM_TOKENS,
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


class FIM(Config):
    """rate: share of the documents that are rearranged, each at two random characters; 0.5 in the
    paper, without a loss in ordinary prediction. spm: share of these in the order suffix, prefix,
    middle. seed: of both choices and of the places, which also depend on the text.
    """

    rate: float = Field(0.5, gt=0, le=1)
    spm: float = Field(0.5, ge=0, le=1)
    seed: NonNegativeInt = 0

    def sentinels(self, tokenizer: Tokenizer) -> tuple[str, str, str]:
        """The names of the tokens before the prefix, the suffix and the middle.

        Raises:
            SettingError: the tokenizer has none.
        """
        for names in SENTINELS:
            if all(len(tokenizer.encode(name, specials=True)) == 1 for name in names):
                return names
        raise SettingError(
            f"data.format.fim: the tokenizer has no tokens such as {FIM_TOKENS[0]}; add them with "
            "tokenizer.fim=true to a new model, or with start.path=MODEL start.fim=true to a "
            "trained one"
        )

    def rearranged(self, text: str, tokenizer: Tokenizer) -> list[int] | None:
        """The ids of a document that is rearranged, without its end; None if it stays as it is."""
        chance = keyed(self.seed, "fim", hashlib.sha256(text.encode()).hexdigest())
        if chance.random() >= self.rate:
            return None
        spm = chance.random() < self.spm
        first, last = sorted(chance.randint(0, len(text)) for _ in range(2))
        before, between, after = text[:first], text[first:last], text[last:]
        prefix, suffix, middle = self.sentinels(tokenizer)
        parts = (
            [prefix, "", suffix, after, middle, before + between]
            if spm
            else [prefix, before, suffix, after, middle, between]
        )
        return tokenizer.offsets.encode("".join(parts), _letters(parts, tokenizer)).ids


def _letters(parts: list[str], tokenizer: Tokenizer) -> set[int]:
    """Where the text itself has the name of a special token; names and text take turns."""
    names, found, place = any_of(tokenizer.specials), set[int](), 0
    for number, part in enumerate(parts):
        if number % 2:
            found |= {place + match.start() for match in names.finditer(part)}
        place += len(part)
    return found
