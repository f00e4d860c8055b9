"""Culm: plain text to a served, aligned language model.

>>> import culm
>>> model = culm.load("runs/quickstart/chat")
>>> print(model.chat("What is 17 + 25?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from culm.text.language_model import LanguageModel
    from culm.text.load import load

__all__ = ["LanguageModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Heavy names on first use, so that `import culm` and the command line start fast."""
    if name == "__version__":
        from importlib.metadata import version

        return version("culm")
    if name == "load":
        from culm.text.load import load

        return load
    if name == "LanguageModel":
        from culm.text.language_model import LanguageModel

        return LanguageModel
    raise AttributeError(f"module 'culm' has no attribute {name!r}")
