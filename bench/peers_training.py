"""Training in Culm and other libraries: forward, backward, clipping and AdamW.

Weights are in fp32 unless the name says otherwise. Activations are bf16, or fp32 where a CPU
computes bf16 slowly.
"""

from collections.abc import Callable

import torch
from peers_rounds import Round, llama, timed

from culm.device import choose_precision
from culm.malloc import keep_freed_memory
from culm.verbs.bench import Size, tokens_of, trainer_of

CPU = torch.device("cpu")
PRECISION = choose_precision(CPU)
ACTIVATIONS = "bf16 autocast" if PRECISION == "bf16" else "fp32"


def train_culm(size: Size) -> Round:
    keep_freed_memory()
    return timed(trainer_of(size, CPU))


def train_transformers(size: Size) -> Round:
    from transformers import LlamaForCausalLM

    model = torch.compile(LlamaForCausalLM(llama(size)))
    tokens = tokens_of(size)[:, :-1].contiguous()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
            return model(tokens, labels=tokens).loss

    return optimized(model, loss)


def train_litgpt(size: Size, dtype: torch.dtype = torch.float32) -> Round:
    from litgpt import GPT, Config

    shape, attention = size.model, size.model.attention[0]
    config = Config(
        block_size=shape.context, padded_vocab_size=shape.vocabulary, vocab_size=shape.vocabulary,
        n_layer=shape.layers, n_embd=shape.width, n_head=attention.heads,
        n_query_groups=attention.kv_heads, intermediate_size=shape.mlp[0].hidden,
        mlp_class_name="LLaMAMLP", norm_class_name="RMSNorm", rotary_percentage=1.0, bias=False,
        parallel_residual=False,
    )  # fmt: skip
    plain = GPT(config).to(dtype)
    plain.lm_head.weight = plain.transformer.wte.weight
    model, tokens = torch.compile(plain), tokens_of(size)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()

    def loss() -> torch.Tensor:
        autocast = PRECISION == "bf16" and dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(inputs).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    return optimized(model, loss)


def train_litgpt_bf16(size: Size) -> Round:
    return train_litgpt(size, torch.bfloat16)


def optimized(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Round:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step)


TRAIN: dict[str, Callable[[Size], Round]] = {
    "culm": train_culm,
    f"transformers, {ACTIVATIONS}, compiled": train_transformers,
    f"litgpt, {ACTIVATIONS}, compiled": train_litgpt,
}
if PRECISION == "bf16":
    TRAIN["litgpt, bf16 weights, compiled"] = train_litgpt_bf16
