"""Training and decoding compared with other libraries, each in its best setting on a CPU.

    python bench/peers.py                                  # every installed library: half an hour
    python bench/peers.py train --size T --rounds 9
    python bench/peers.py decode --size S --rows 8
    python bench/peers.py read --size S --tokens 1024      # a prompt, up to the first token

Every contender is a separate process, warmed up alone. Then they take turns, round by round, so
that a busy moment of the machine affects all; the table shows the median of a contender's rounds,
and of its ratios per round to the peer with the fastest median and to Culm in bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy
import torch

from culm.adapt.quantize import Int8
from culm.convert import native
from culm.convert.export import export
from culm.device import choose_precision
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.malloc import keep_freed_memory
from culm.plan.timing import decoding_trial
from culm.tokenizer.bytes import Bytes
from culm.train.memory import peak_bytes
from culm.verbs.bench import NEW, PROMPT, SIZES, Size, decoder_of, model_of, tokens_of, trainer_of

CPU = torch.device("cpu")
PRECISION = choose_precision(CPU)
ACTIVATIONS = "bf16 autocast" if PRECISION == "bf16" else "fp32"
Round = Callable[[], float]  # does the work once; returns its seconds


# ---------------------------------------------------------------------------------------------
# Training: forward, backward, clipping and AdamW; weights in fp32 unless the name says otherwise.
# Activations are bf16, or fp32 where a CPU computes bf16 slowly.


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


def timed(step: Callable[[], None]) -> Round:
    def call() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return call


def llama(size: Size):
    """The same shape for transformers."""
    from transformers import LlamaConfig

    shape, attention = size.model, size.model.attention[0]
    return LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=attention.heads, num_key_value_heads=attention.kv_heads,
        intermediate_size=shape.mlp[0].hidden, max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Decoding, greedy: the time of a complete answer minus that of its first token


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


class LlamaCpp:
    """A model folder in llama.cpp, from our export; the rows are sequences of one batch.

    kind: of the weights in GGUF, such as "q8_0". prompt: tokens of a row that are read at once.
    """

    def __init__(self, source: Path, kind: str, rows: int = 1, prompt: int = PROMPT) -> None:
        import llama_cpp

        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, None)
        self.library, self.rows = llama_cpp, rows
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            export(source, path, kind)
            parameters = llama_cpp.llama_model_default_params()
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * (prompt + NEW), rows
        settings.n_batch = settings.n_ubatch = rows * prompt
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        words = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(words)
        self.batch = llama_cpp.llama_batch_init(rows * prompt, 0, 1)

    def clear(self) -> None:
        memory = self.library.llama_get_memory(self.context)
        self.library.llama_memory_clear(memory, True)

    def read(self, ids: list[list[int]], place: int) -> list[int]:
        """Append some ids to each row from a place on; gives the most likely next ones."""
        batch, each = self.batch, len(ids[0])
        batch.n_tokens = self.rows * each
        for index in range(batch.n_tokens):
            row, offset = divmod(index, each)
            batch.token[index], batch.pos[index] = ids[row][offset], place + offset
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = offset == each - 1
        if self.library.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not read the batch")
        return [self.best(row * each + each - 1) for row in range(self.rows)]

    def best(self, index: int) -> int:
        return int(self.logits(index).argmax())

    def logits(self, index: int) -> numpy.ndarray:
        """(V,) after a token of the last batch; overwritten by the next."""
        logits = self.library.llama_get_logits_ith(self.context, index)
        return numpy.ctypeslib.as_array(logits, (self.vocabulary,))


def random_llama_cpp(size: Size, kind: str, rows: int = 1, prompt: int = PROMPT) -> LlamaCpp:
    with tempfile.TemporaryDirectory() as folder:
        native.save(size.model.build(), Bytes(specials=True).build(), Path(folder) / "model")
        return LlamaCpp(Path(folder) / "model", kind, rows, prompt)


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


# ---------------------------------------------------------------------------------------------
# Reading a prompt, up to its first new token


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


# ---------------------------------------------------------------------------------------------

TRAIN: dict[str, Callable[[Size], Round]] = {
    "culm": train_culm,
    f"transformers, {ACTIVATIONS}, compiled": train_transformers,
    f"litgpt, {ACTIVATIONS}, compiled": train_litgpt,
}
if PRECISION == "bf16":
    TRAIN["litgpt, bf16 weights, compiled"] = train_litgpt_bf16
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


COUNTED = {"decode": DECODE, "read": READ}
SAME_WIDTH = {  # who reads weights of as many bits
    "culm": "llama_cpp, bf16",
    "culm, int8": "llama_cpp, q8_0",
    "culm, int4": "llama_cpp, q4_0",
    "culm, int4, int8 head": "llama_cpp, q4_0",
}


def contend(pipe: Connection, what: str, name: str, size: Size, count: int) -> None:
    """One process: warm up, then a round for each message; sends seconds and peak bytes."""
    if what == "read":  # the prompt may be longer than the rows of training
        longer = max(size.model.context, count + NEW)
        size = replace(size, model=size.model.model_copy(update={"context": longer}))
    call = TRAIN[name](size) if what == "train" else COUNTED[what][name](size, count)
    for _ in range(2):
        call()
    pipe.send((0.0, peak_bytes()))
    while pipe.recv():
        pipe.send((call(), peak_bytes()))


def compare(what: str, letter: str, count: int, rounds: int, peer: str | None) -> None:
    """Print one table. count: rows that decode, or tokens of a prompt. peer: only this one."""
    size, context = SIZES[letter], multiprocessing.get_context("spawn")
    names = [name for name in (TRAIN if what == "train" else COUNTED[what]) if installed(name)]
    if peer is not None:  # PyTorch's operators are for the whole table: they take most of the time
        names = [one for one in names if one.split(",")[0] in ("culm", peer) and "torch" not in one]
    pipes = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contend, args=(theirs, what, name, size, count), daemon=True).start()
        theirs.close()
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory = {}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            spent, memory[name] = pipe.recv()
            seconds[name].append(spent)
    for pipe in pipes.values():
        pipe.send(False)
    titles = {"decode": f", {count} rows", "read": f", {count} tokens"}
    tokens = {
        "train": size.rows * size.model.context, "decode": count * (NEW - 1), "read": count,
    }[what]  # fmt: skip
    show(f"{what} {letter}{titles.get(what, '')}", seconds, tokens, memory)


def show(title: str, seconds: dict[str, list[float]], tokens: int, memory: dict[str, int]) -> None:
    peers = {name: spent for name, spent in seconds.items() if not name.startswith("culm")}
    best = min(peers, key=lambda name: statistics.median(peers[name])) if peers else None
    columns = "tokens/s | to the best peer | to culm | to llama.cpp of the same width | peak MiB"
    print(f"\n| {title} | {columns} |\n|---|--:|--:|--:|--:|--:|")
    for name, spent in seconds.items():
        rate = tokens / statistics.median(spent)
        others = (best, "culm", SAME_WIDTH.get(name))
        ratios = [ratio(seconds[x], spent) if x in seconds else "-" for x in others]
        peak = f"{memory[name] / 2**20:,.0f}"
        print(f"| {name} | {rate:,.0f} | {' | '.join(ratios)} | {peak} |", flush=True)


def ratio(others: list[float], own: list[float]) -> str:
    """How many times as fast, in the median of the rounds."""
    return f"{statistics.median(a / b for a, b in zip(others, own, strict=True)):.2f}"


def installed(name: str) -> bool:
    return importlib.util.find_spec(name.split(",")[0]) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("train", "decode", "read"))
    parser.add_argument("--size", choices=tuple(SIZES))
    parser.add_argument("--rows", type=int, help="of decoding")
    parser.add_argument("--tokens", type=int, help="of the prompt that is read")
    parser.add_argument("--peer", help="only this library, such as llama_cpp, beside Culm")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    chosen = {"decode": given.rows, "read": given.tokens}
    usual = (("train", "ST", (0,)), ("decode", "SL", (1, 8)), ("read", "SL", (128, 1024)))
    for what, sizes, counts in usual:
        if given.what in (None, what):
            for letter in [given.size] if given.size else sizes:
                for count in [chosen[what]] if chosen.get(what) else counts:
                    compare(what, letter, count, given.rounds, given.peer)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
