"""Families of GGUF files: this list is the registry, plain ones first."""

from culm.convert.gguf_families.deepseek import DEEPSEEK
from culm.convert.gguf_families.gemma import GEMMA
from culm.convert.gguf_families.gpt import GPT
from culm.convert.gguf_families.gpt_oss import GPT_OSS
from culm.convert.gguf_families.line import LINE

FAMILIES = (*LINE, *GEMMA, *GPT, GPT_OSS, DEEPSEEK)
