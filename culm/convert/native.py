"""Culm's own model folder.

    model.json          settings, precision, what is quantised and how, SHA-256 of the other files
    model.safetensors   weights under our names; a tied head once
    tokenizer.json ...  the tokenizer and its chat template
    README.md           a card for the reader
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from safetensors.torch import save_file

from culm.adapt.quantize import Quantizer
from culm.adapt.quantize.linear import QuantizedLinear
from culm.config import Config, SettingError, parse
from culm.convert.files import read_json, read_safetensors, sha256, whole, write_json
from culm.convert.weights import assemble, refuse_adapters
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.tokenizer import Tokenizer

FORMAT = 1
SETTINGS, WEIGHTS, CARD = "model.json", "model.safetensors", "README.md"
