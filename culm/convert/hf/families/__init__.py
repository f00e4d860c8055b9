"""Families of Hugging Face folders: one file each; this list is the registry, plain ones first."""

from culm.convert.hf.families.deepseek import DEEPSEEK_V3
from culm.convert.hf.families.gemma import GEMMA2, GEMMA3
from culm.convert.hf.families.gpt2 import GPT2
from culm.convert.hf.families.gpt_oss import GPT_OSS
from culm.convert.hf.families.llama import LLAMA
from culm.convert.hf.families.mistral import MISTRAL
from culm.convert.hf.families.mixtral import MIXTRAL
from culm.convert.hf.families.neox import NEOX
from culm.convert.hf.families.olmo import OLMO2, OLMO3
from culm.convert.hf.families.phi3 import PHI3
from culm.convert.hf.families.qwen import QWEN2, QWEN3
from culm.convert.hf.families.qwen3_moe import QWEN3_MOE
from culm.convert.hf.families.smollm3 import SMOLLM3

FAMILIES = (
    *(LLAMA, QWEN2, QWEN3, MISTRAL, SMOLLM3, OLMO2, OLMO3, GEMMA2, GEMMA3, GPT2, NEOX, PHI3),
    *(MIXTRAL, QWEN3_MOE, DEEPSEEK_V3, GPT_OSS),
)
