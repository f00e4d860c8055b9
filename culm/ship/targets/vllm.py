"""vLLM and SGLang: a Hugging Face folder, and the commands that serve it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from culm.config import SettingError
from culm.dtype import dtype_of, name_of
from culm.model.transformer import Transformer
from culm.ship.target import TargetConfig, read_language_model, write_folder


class VLLM(TargetConfig):
    """tensor_parallel: GPUs that share each layer; it divides the heads."""

    kind: Literal["vllm"] = "vllm"
    tensor_parallel: PositiveInt = 1

    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        model, tokenizer = read_language_model(source, "vLLM")
        check_heads(model, self.tensor_parallel)
        usage = _usage(out.name, model.config.context, dtype, self.tensor_parallel)
        write_folder(model, tokenizer, out, dtype, family, usage)


def check_heads(model: Transformer, parts: int) -> None:
    """SettingError unless the heads of every attention layer can be divided into this many parts.
    Each part has some of the heads of keys and values, or several parts a copy of one.
    """
    for block in model.every_block:
        heads, *keys = block.attention.heads_divided or (parts,)
        if heads % parts:
            raise SettingError(
                f"--for.tensor_parallel: {parts} does not divide the {heads} attention heads"
            )
        for kv_heads in keys:
            if kv_heads % parts and parts % kv_heads:
                raise SettingError(
                    f"--for.tensor_parallel: {parts} is neither a divisor nor a multiple of the "
                    f"{kv_heads} heads of keys and values"
                )


def commands(folder: str, context: int, dtype: str, parts: int) -> dict[str, str]:
    """The line that starts each server, by its name. folder: also the name of the model."""
    kind = name_of(dtype_of(dtype or "bfloat16"))
    common = ["--served-model-name", folder, "--dtype", kind, "--host", "127.0.0.1"]
    common += ["--port", "8000"]
    vllm = ["vllm", "serve", f"./{folder}", *common, "--max-model-len", str(context)]
    sglang = ["python", "-m", "sglang.launch_server", "--model-path", f"./{folder}", *common]
    sglang += ["--context-length", str(context)]
    if parts > 1:
        vllm += ["--tensor-parallel-size", str(parts)]
        sglang += ["--tp-size", str(parts)]
    return {"vLLM": shlex.join(vllm), "SGLang": shlex.join(sglang)}


def _usage(folder: str, context: int, dtype: str, parts: int) -> str:
    blocks = [
        f"{name}:\n\n```bash\n{line}\n```"
        for name, line in commands(folder, context, dtype, parts).items()
    ]
    return "\n\n".join(
        [
            "## Serve it",
            "Next to this folder. Both servers take the chat template and the sampling settings "
            "from it, and speak OpenAI's API on port 8000.",
            *blocks,
        ]
    ) + "\n"  # fmt: skip
