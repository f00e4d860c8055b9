"""Adapter folders in the format of PEFT: `peft.load(model, folder)`, `peft.save(model, ...)`."""

from culm.convert.peft.folder import beside, is_adapter, load, save

__all__ = ["beside", "is_adapter", "load", "save"]
