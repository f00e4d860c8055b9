"""Adapter folders in the format of PEFT: `peft.load(model, folder)`, `peft.save(model, ...)`."""

from culm.convert.peft.folder import is_adapter, load, read_adapters
from culm.convert.peft.save import save

__all__ = ["is_adapter", "load", "read_adapters", "save"]
