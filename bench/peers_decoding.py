"""Decoding and reading prompts in Culm and other libraries.

Decoding is greedy: the time of a complete answer minus that of its first token. A prompt is read
up to its first new token.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from peers_llama_cpp import random_llama_cpp
from peers_rounds import Round, llama, timed

from culm.adapt.quantize import Int8
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.plan.timing import decoding_trial
from culm.verbs.bench import NEW, PROMPT, Size, decoder_of, model_of, tokens_of

CPU = torch.device("cpu")


def decode_culm(size: Size, rows: int) -> Round:
    return decoder_of(size, "bf16", rows, CPU)


def decode_culm_int8(size: Size, rows: int) -> Round:
    return decoder_of(size, "int8", rows, CPU)


def decode_culm_int4(size: Size, rows: int) -> Round:
    return decoder_of(size, "int4", rows, CPU)


def decode_culm_int4_int8_head(size: Size, rows: int) -> Round:
    """As Q4_0 of llama.cpp, whose head has more bits than the other layers too (Q6_K)."""
    model = model_of(size, "int4", CPU)
    Int8(targets=("head",)).apply(model)
    return decoding_trial(model, rows, PROMPT, NEW)


def decode_culm_operators(size: Size, rows: int) -> Round:
    return decoder_of(size, "bf16", rows, CPU, fused=False)


def decode_transformers(size: Size, rows: int, **settings: str) -> Round:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama(size)).to(torch.bfloat16).eval()
    if settings:
        model.forward = torch.compile(model.forward)
    prompt = tokens_of(size)[:1, :PROMPT].repeat(rows, 1)

    @torch.inference_mode()
    def answer(tokens: int) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0,
            eos_token_id=None, min_new_tokens=tokens, max_new_tokens=tokens, **settings,
        )  # fmt: skip

    complete, first = timed(lambda: answer(NEW)), timed(lambda: answer(1))
    return lambda: complete() - first()


def decode_transformers_static(size: Size, rows: int) -> Round:
    return decode_transformers(size, rows, cache_implementation="static")


def decode_llama_cpp(size: Size, rows: int, kind: str) -> Round:
    model, prompt = random_llama_cpp(size, kind, rows), tokens_of(size)[0, :PROMPT].tolist()

    def answer() -> float:
        model.clear()
        ids = model.read([prompt] * rows, 0)
        start = time.perf_counter()
        for place in range(PROMPT, PROMPT + NEW - 1):
            ids = model.read([[id] for id in ids], place)
        return time.perf_counter() - start

    return answer


def read_culm(size: Size, tokens: int, weights: str = "bf16") -> Round:
    engine = Engine(model_of(size, weights, CPU), 1, tokens + 1)
    request = Request(prompt_of(size, tokens), 1, Sampling(temperature=0))
    return timed(lambda: engine.generate([request]))


def read_transformers(size: Size, tokens: int) -> Round:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama(size)).to(torch.bfloat16).eval()
    prompt = torch.tensor([prompt_of(size, tokens)])
    return timed(torch.inference_mode()(lambda: model(prompt, logits_to_keep=1)))


def read_llama_cpp(size: Size, tokens: int, kind: str) -> Round:
    model, prompt = random_llama_cpp(size, kind, prompt=tokens), list(prompt_of(size, tokens))

    def read() -> None:
        model.clear()
        model.read([prompt], 0)

    return timed(read)


def prompt_of(size: Size, tokens: int) -> tuple[int, ...]:
    return tuple(7 * i % size.model.vocabulary for i in range(tokens))


DECODE: dict[str, Callable[[Size, int], Round]] = {
    "culm": decode_culm,
    "culm, int8": decode_culm_int8,
    "culm, int4": decode_culm_int4,
    "culm, int4, int8 head": decode_culm_int4_int8_head,
    "culm, torch operators": decode_culm_operators,
    "llama_cpp, bf16": partial(decode_llama_cpp, kind="bf16"),
    "llama_cpp, q8_0": partial(decode_llama_cpp, kind="q8_0"),
    "llama_cpp, q4_0": partial(decode_llama_cpp, kind="q4_0"),
    "transformers, bf16": decode_transformers,
    "transformers, bf16, static cache, compiled": decode_transformers_static,
}
READ: dict[str, Callable[[Size, int], Round]] = {
    "culm": read_culm,
    "culm, int8": partial(read_culm, weights="int8"),
    "culm, int4": partial(read_culm, weights="int4"),
    "llama_cpp, bf16": partial(read_llama_cpp, kind="bf16"),
    "llama_cpp, q8_0": partial(read_llama_cpp, kind="q8_0"),
    "llama_cpp, q4_0": partial(read_llama_cpp, kind="q4_0"),
    "transformers, bf16": read_transformers,
}
