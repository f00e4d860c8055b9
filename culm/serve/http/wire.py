"""Which fields of a request are accepted.

Every field is on a list: it is honoured, it has no effect here (`HARMLESS`), or it is accepted at
the values that have no effect (`Wire.neutral`). All others are refused. null means absent.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from culm.source.record import valid

MAX_DEPTH = 128  # of objects and lists; what follows them is recursive, such as chat templates

Neutral = dict[str, tuple[Any, ...]]  # fields, with their values that have no effect

# Names, accounts and caches: no answer depends on them.
HARMLESS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "prompt_cache_options cache_salt cache_control request_id priority "
    "annotations include_obfuscation".split()
)


# Fields that are accepted at these values only.
UNSUPPORTED: Neutral = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    "min_tokens": (0,),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    **dict.fromkeys(("audio", "prediction", "web_search_options"), ()),
}


class Wire(BaseModel):
    """Base of all that clients send; NaN and infinity are refused.

    neutral: fields that are not supported, with the values that have no effect.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_effect(cls, given: Any) -> Any:
        """The fields that have an effect."""
        if not isinstance(given, dict):
            return given
        kept = {}
        for name, value in given.items():
            if value is None or name in HARMLESS or value in cls.neutral.get(name, ()):
                continue
            if name in cls.neutral and not cls._is_off(name, given):
                raise PydanticCustomError("unsupported", "{name} is not supported", {"name": name})
            if name not in cls.neutral:
                kept[name] = value
        return kept

    @classmethod
    def _is_off(cls, name: str, given: dict[str, Any]) -> bool:
        """Whether another field takes away the effect of a neutral one."""
        return False


class Body(Wire):
    """A complete request."""

    @model_validator(mode="before")
    @classmethod
    def _encodable(cls, given: Any) -> Any:
        if fault := fault_in(given):
            raise PydanticCustomError("unusable", "{fault}", {"fault": fault})
        return given


def fault_in(given: Any) -> str | None:
    """Why a JSON value cannot be used: UTF-8 cannot write it, or its depth is above MAX_DEPTH."""
    level = [given]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            match value:
                case str() as text:
                    if valid(text) is not text:
                        return "a text has half of a surrogate pair"
                case dict() as fields:
                    below += [*fields, *fields.values()]
                case list() as items:
                    below += items
        if not below:
            return None
        level = below
    return f"objects and lists are more than {MAX_DEPTH} deep in each other"


@cache
def known_fields() -> frozenset[str]:
    """Names of the fields of every class here."""
    found, left = set[str](), [Wire]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        found |= {field.alias or name for name, field in kind.model_fields.items()}
    return frozenset(found)
