"""Documents in languages that are not wanted, by the library lingua."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from culm.config import SettingError, did_you_mean, listed
from culm.data.clean.stage import Filter, Stage, Step
from culm.source.pieces import cut_before

PACKAGE = "lingua-language-detector"


class Language(Stage):
    """Drops what is not in one of the languages (needs lingua: pip install 'culm[clean]').

    keep: codes of languages, as in ISO 639-1, such as en. min_confidence: of the detector, in all
        of them together; FineWeb uses 0.65 with another detector. characters: of a document that
        are read; more is slower and hardly more certain.
    among: languages that the detector knows of; all 75 if there are none. Fewer are faster.
    """

    kind: Literal["language"] = "language"
    keep: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = ("en",)
    min_confidence: float = Field(0.65, ge=0, le=1)
    characters: PositiveInt = 500
    among: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()

    @model_validator(mode="after")
    def _keeps_some_of_them(self) -> Language:
        if self.among and (other := sorted(set(self.keep) - set(self.among))):
            raise ValueError(f"keep: {other[0]} is not among {', '.join(self.among)}")
        if len(self.among) == 1:
            raise ValueError("among: a choice needs two languages at least")
        return self

    @property
    def versions(self) -> Mapping[str, str]:
        try:
            return {PACKAGE: version(PACKAGE)}
        except PackageNotFoundError:
            raise SettingError(
                "data.clean: language needs a further package; pip install 'culm[clean]'"
            ) from None

    def build(self) -> Step:
        _ = self.versions  # a missing package has a message
        return _Language(self)


class _Language(Filter):
    def __init__(self, settings: Language) -> None:
        from lingua import LanguageDetectorBuilder  # an extra

        known = _languages()
        wanted = [_language(known, code, "keep") for code in settings.keep]
        among = [_language(known, code, "among") for code in settings.among]
        builder = (
            LanguageDetectorBuilder.from_languages(*among)
            if among
            else LanguageDetectorBuilder.from_all_languages()
        )
        # The models of trigrams alone: a hundredth of the memory, as good for texts of some lines.
        self._detector = builder.with_low_accuracy_mode().with_preloaded_language_models().build()
        self._settings, self._wanted = settings, frozenset(wanted)

    def reason(self, text: str) -> str | None:
        size = self._settings.characters
        head = text.lstrip()
        found = self._detector.compute_language_confidence_values(head[: cut_before(head, 0, size)])
        certain = sum(one.value for one in found if one.language in self._wanted)
        if certain >= self._settings.min_confidence:
            return None
        first = found[0]
        if first.language in self._wanted or not first.value:
            return "no language is certain enough"
        return f"language {first.language.iso_code_639_1.name.lower()}"


def _languages() -> dict[str, Any]:
    from lingua import Language as Known

    return {one.iso_code_639_1.name.lower(): one for one in Known.all()}


def _language(known: Mapping[str, Any], code: str, setting: str) -> Any:
    if code.lower() not in known:
        raise SettingError(
            f"data.clean.language.{setting}: there is no language {code!r}"
            f"{did_you_mean(code, sorted(known))}"
        )
    return known[code.lower()]
