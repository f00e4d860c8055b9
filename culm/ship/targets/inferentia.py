"""AWS Inferentia2 and Trainium: a Hugging Face folder, and a script that compiles it.

The script needs optimum-neuron on a machine with these chips. The checks are those of
optimum-neuron 0.4.5, whose models have fixed shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, model_validator

from culm.config import SettingError
from culm.convert import hf
from culm.model.transformer import TransformerConfig
from culm.ship.target import TargetConfig, read_language_model, write_folder
from culm.ship.targets.vllm import check_heads

SCRIPT = "compile.py"
# `model_type` of the models that optimum-neuron compiles for inference.
FAMILIES = (
    "granite", "llama", "llama4_text", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
)  # fmt: skip
CORES = {"inf2": 24, "trn1": 32}  # NeuronCores of the largest instance
BUCKET = 128  # the compiler fills sequences up to multiples of this


class Inferentia(TargetConfig):
    """instance: the chip. batch_size: sequences that one step decodes. sequence_length: tokens of
    prompt and answer, a multiple of 128; by default as many as the model reads. tensor_parallel:
    NeuronCores that share each layer; it divides the heads.
    """

    kind: Literal["inferentia"] = "inferentia"
    instance: Literal["inf2", "trn1"] = "inf2"
    batch_size: PositiveInt = 1
    sequence_length: PositiveInt | None = None
    tensor_parallel: PositiveInt = 2

    @model_validator(mode="after")
    def _shapes(self) -> Inferentia:
        if self.tensor_parallel > CORES[self.instance]:
            raise ValueError(
                f"tensor_parallel: {self.tensor_parallel} is more than the "
                f"{CORES[self.instance]} NeuronCores of the largest {self.instance}"
            )
        if (self.sequence_length or BUCKET) % BUCKET:
            raise ValueError(f"sequence_length: {self.sequence_length} is no multiple of {BUCKET}")
        return self

    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        model, tokenizer = read_language_model(source, "Neuron")
        length = self._length(model.config)
        check_heads(model, self.tensor_parallel)
        chosen = _family(model.config, family)
        write_folder(model, tokenizer, out, dtype, chosen, _usage(self.instance))
        values: dict[str, int | str] = {
            "batch_size": self.batch_size, "sequence_length": length,
            "tensor_parallel_size": self.tensor_parallel, "instance_type": self.instance,
        }  # fmt: skip
        (out / SCRIPT).write_text(_script(values), encoding="utf-8")

    def _length(self, config: TransformerConfig) -> int:
        length = self.sequence_length or config.context - config.context % BUCKET
        if not 0 < length <= config.context:
            raise SettingError(
                f"--for.sequence_length: it is a multiple of {BUCKET} and no longer than the "
                f"{config.context} tokens that the model reads"
            )
        return length


def _family(config: TransformerConfig, wanted: str) -> str:
    """The first family that has the model's shape and that optimum-neuron compiles."""
    fitting = hf.families_of(config)
    chosen = [name for name in fitting if name in FAMILIES and wanted in ("", name)]
    if not chosen:
        raise SettingError(
            f"--for inferentia: optimum-neuron compiles {', '.join(FAMILIES)}, and this model is "
            f"{' or '.join(fitting) or 'of no family'}"
        )
    return chosen[0]


def _usage(instance: str) -> str:
    return f"""\
## Compile it for {instance}

On an {instance} instance with the Neuron driver, in this folder:

```bash
pip install 'optimum-neuron[neuronx]==0.4.5' \\
    --extra-index-url https://pip.repos.neuron.amazonaws.com
python {SCRIPT}
```
"""


def _script(values: dict[str, int | str]) -> str:
    """A program that compiles the folder in which it is, and tries the result."""
    shapes = "\n".join(f'    "{name}": {value!r},' for name, value in values.items())
    return f'''\
"""Compile this folder for Neuron: python {SCRIPT} [OUT]"""

import sys
from pathlib import Path

from optimum.neuron import NeuronModelForCausalLM
from transformers import AutoTokenizer

SHAPES = {{
{shapes}
}}

here = Path(__file__).parent
out = Path(sys.argv[1] if len(sys.argv) > 1 else here / "neuron")
config = NeuronModelForCausalLM.get_neuron_config(str(here), **SHAPES)
model = NeuronModelForCausalLM.export(str(here), neuron_config=config, load_weights=True)
model.save_pretrained(out)
tokenizer = AutoTokenizer.from_pretrained(here)
tokenizer.save_pretrained(out)
prompt = tokenizer(["The"] * SHAPES["batch_size"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**prompt, max_new_tokens=16, do_sample=False)))
'''
