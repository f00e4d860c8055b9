"""`culm schema`: an editor shows what every setting means."""

import pytest

from culm.verbs.schema import schema


def test_no_setting_is_without_words() -> None:
    found = schema()
    settings = {
        f"{name}.{setting}": about.get("description", "")
        for name, part in {"RunConfig": found, **found["$defs"]}.items()
        for setting, about in part.get("properties", {}).items()
        if setting != "kind"  # the name of the part, which has a description of its own
    }
    assert len(settings) > 250
    assert [name for name, words in settings.items() if len(words) < 8] == []


@pytest.mark.parametrize(
    ("part", "setting", "words"),
    [
        ("TrainConfig", "checkpoint", "How often the state is saved."),
        (
            "Cosine",
            "final",
            "The rate that a step after the last one would have, as a share of the greatest.",
        ),
        ("LoRA", "alpha", "B A x is scaled by alpha / rank."),
        (
            "CompleteP",
            "base_width",
            "Of the model for which rates and initial",
        ),
    ],
)
def test_the_words_are_those_of_the_class(part: str, setting: str, words: str) -> None:
    assert schema()["$defs"][part]["properties"][setting]["description"].startswith(words)
