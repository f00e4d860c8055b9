"""The rules that split text into words before byte-level BPE, by their llama.cpp names.

llama.cpp has the regular expressions in its code (llama-vocab.cpp); a file only names one of them
under `tokenizer.ggml.pre`. Where llama.cpp rewrites one for an engine with fewer character classes,
this file has the expression that the models were trained with.
"""

from __future__ import annotations

from typing import NamedTuple

from culm.tokenizer.patterns import GPT2, QWEN2


class SplitRule(NamedTuple):
    """words: expressions in order; each splits what earlier ones left between matches.

    whole: a word that is a token is not merged from parts.
    start: whether a text starts with the start token by default.
    """

    words: tuple[str, ...]
    whole: bool = False
    start: bool = False


_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _gpt4(digits: str) -> str:
    return rf"{_SHORT}|{_LETTERS}|{digits}|{_SIGNS}[\r\n]*|{_SPACES}"


def _cased(digits: str, short: str) -> str:
    """Capitals begin a word; what is short for a verb stays at its end."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{before}{_UPPER}*{_LOWER}+{short}|{before}{_UPPER}+{_LOWER}*{short}"
    return rf"{words}|{digits}|{_SIGNS}[\r\n/]*|{_SPACES}"


_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_EAST_ASIAN = "[一-龥぀-ゟ゠-ヿ]+"  # noqa: RUF001
_STOPS = r" ?[^(\s|.,!?…。，、।۔،)]+"  # noqa: RUF001
_SIGN_RUNS = r"[\p{P}$+<=>^~|%s]+"

# The first of several names is the one that is written.
_GROUPS = {
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum": SplitRule(
        (GPT2,)
    ),
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo grok-2 solar-open": SplitRule(
        (_gpt4(r"\p{N}"),)
    ),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": SplitRule(
        (_gpt4(r"\p{N}{1,3}"),), whole=True, start=True
    ),
    "dbrx smaug-bpe chatglm-bpe glm4": SplitRule((_gpt4(r"\p{N}{1,3}"),)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": SplitRule((r"\p{N}", GPT2)),
    "gpt-4o llama4 minimax-m2": SplitRule((_cased(r"\p{N}{1,3}", _SHORT + "?"),)),
    "tekken": SplitRule((_cased(r"\p{N}", ""),), whole=True, start=True),
    "deepseek-v3 hunyuan-dense joyai-llm": SplitRule((r"\p{N}{1,3}", _EAST_ASIAN, _DEEPSEEK)),
    "deepseek-coder": SplitRule(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
    ),
    "falcon": SplitRule((_SIGN_RUNS % "`", GPT2, "[0-9][0-9][0-9]")),
    "seed-coder": SplitRule(
        (rf"{_SHORT}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "bloom poro-chat gpt3-finnish": SplitRule((_STOPS,)),
    "viking": SplitRule((_STOPS, r"\p{N}")),
    "default": SplitRule((_SIGN_RUNS % "", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
RULES = {name: rule for names, rule in _GROUPS.items() for name in names.split()}
NAMES = {
    ((QWEN2,), False): "qwen2",
    **{(rule.words, rule.whole): names.split()[0] for names, rule in _GROUPS.items()},
}
