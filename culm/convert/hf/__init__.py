"""Hugging Face folders, read and written: `hf.load(folder)`, `hf.export(model, ...)`."""

from culm.convert.hf.export import all_module_names, export, families_of, module_names
from culm.convert.hf.folder import SETTINGS, family_at, is_model, load, parts, read_config

__all__ = [
    "SETTINGS", "all_module_names", "export", "families_of", "family_at", "is_model", "load",
    "module_names", "parts", "read_config",
]  # fmt: skip
