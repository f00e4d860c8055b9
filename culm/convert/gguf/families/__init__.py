"""Families of GGUF files: this list is the registry, plain ones first."""

from culm.convert.gguf.families.deepseek import DEEPSEEK
from culm.convert.gguf.families.gemma import GEMMA
from culm.convert.gguf.families.gpt import GPT
from culm.convert.gguf.families.gpt_oss import GPT_OSS
from culm.convert.gguf.families.line import LINE

FAMILIES = (*LINE, *GEMMA, *GPT, GPT_OSS, DEEPSEEK)
