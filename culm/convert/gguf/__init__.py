"""GGUF files, read and written: `gguf.load(path)`, `gguf.export(model, ...)`."""

from culm.convert.gguf.file import export, load, read_config

__all__ = ["export", "load", "read_config"]
