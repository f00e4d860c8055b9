"""What `bench/gpu.py` compares: Culm with one part exchanged, and plain PyTorch written by hand."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from plain_llama import PlainLlama
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

from culm.model import logprobs
from culm.model.backend import place
from culm.model.score_rule import Backend
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Checkpointing, parallelize
from culm.train.trainer import Trainer
from culm.train.update import Update
from culm.verbs.bench import SameBatch

RATE = 1e-4


class Learning(NamedTuple):
    """A contender that is ready. loss: of its rows, in nats, without a step."""

    step: Callable[[], None]
    loss: Callable[[], float]


class Task(NamedTuple):
    """What all contenders learn. ids: (B, T + 1)."""

    model: TransformerConfig
    ids: Tensor
    device: torch.device
    precision: torch.dtype  # of activations

    def initial(self) -> Transformer:
        """The same weights for all."""
        torch.manual_seed(0)
        return self.model.build(device=self.device)


@dataclass(frozen=True)
class Culm:
    """The one loop, as `culm train` builds it, with parts exchanged.

    kernel: of `scaled_dot_product_attention`, instead of torch's choice. whole_logits: at once
    and stored. foreach: AdamW of torch instead of the fused kernel.
    """

    backend: Backend | Literal["auto"] = "auto"
    kernel: SDPBackend | None = None
    compile: bool = True
    foreach: bool = False
    whole_logits: bool = False
    checkpointing: Checkpointing = "none"
    weights: torch.dtype = torch.float32

    def ready(self, task: Task) -> Learning:
        if self.whole_logits:
            logprobs.CHUNK, logprobs.STORED_BYTES = task.ids.numel(), sys.maxsize
        model = task.initial().to(self.weights)
        place(model, task.device, task.precision, self.backend, training=True)
        objective = NextTokenObjective(NextToken(), model.train())
        optimizer: torch.optim.Optimizer = AdamW(rate=RATE, weight_decay=0.0).build(objective)
        if self.foreach:
            optimizer = torch.optim.AdamW(
                objective.parameters(), RATE, (0.9, 0.95), weight_decay=0.0, foreach=True
            )
        parallel = parallelize(
            objective, compile=self.compile, activation_checkpointing=self.checkpointing
        )
        trainer, batches = Trainer(Update(parallel, optimizer), Constant()), SameBatch(task.ids)

        def step() -> None:
            with chosen(self.kernel):
                trainer.fit(batches, 1)

        @torch.no_grad()
        def loss() -> float:
            with chosen(self.kernel):
                found = objective(batches.batch.to(task.device))
            return float(found.mean(batches.batch.counts))

        return Learning(step, loss)


@dataclass(frozen=True)
class Plain:
    """Written by hand: fp32 weights, bf16 activations, fused AdamW, clipping.

    shards: FSDP2 around each compiled block, on one rank; otherwise autocast, and the whole model
        compiled.
    """

    shards: bool

    def ready(self, task: Task) -> Learning:
        model = PlainLlama(task.initial()).to(task.device)
        forward: nn.Module | Callable[[Tensor], Tensor] = model
        precision: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        if self.shards:
            shard_plainly(model, task)
        else:
            forward = torch.compile(model)
            if task.precision != torch.float32:
                precision = partial(torch.autocast, task.device.type, task.precision)
        optimizer = torch.optim.AdamW(
            model.parameters(), RATE, (0.9, 0.95), weight_decay=0.0, fused=True
        )
        ids = task.ids.to(task.device)

        def step() -> None:
            with precision():
                found = forward(ids)
            found.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        @torch.no_grad()
        def loss() -> float:
            with precision():
                return float(forward(ids))

        return Learning(step, loss)


def shard_plainly(model: PlainLlama, task: Task) -> None:
    """FSDP2 as its tutorial has it, on one rank."""
    store = Path(tempfile.mkdtemp(prefix="culm-bench-")) / "store"
    torch.distributed.init_process_group(
        "nccl" if task.device.type == "cuda" else "gloo", init_method=f"file://{store}",
        rank=0, world_size=1,
    )  # fmt: skip
    mesh = torch.distributed.init_device_mesh(task.device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=task.precision, reduce_dtype=torch.float32)
    for block in model.blocks:
        block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextlib.contextmanager
def chosen(kernel: SDPBackend | None) -> Iterator[None]:
    with contextlib.nullcontext() if kernel is None else sdpa_kernel(kernel):
        yield


CONTENDERS: dict[str, Culm | Plain] = {
    "culm": Culm(),
    "culm, flash kernel of sdpa": Culm(backend="sdpa", kernel=SDPBackend.FLASH_ATTENTION),
    "culm, cudnn kernel of sdpa": Culm(backend="sdpa", kernel=SDPBackend.CUDNN_ATTENTION),
    "culm, flash2": Culm(backend="flash2"),
    "culm, flash3": Culm(backend="flash3"),
    "culm, flex": Culm(backend="flex"),
    "culm, blocks": Culm(backend="blocks"),
    "culm, not compiled": Culm(compile=False),
    "culm, foreach AdamW": Culm(foreach=True),
    "culm, whole logits": Culm(whole_logits=True),
    "culm, selective checkpointing": Culm(checkpointing="selective"),
    "culm, full checkpointing": Culm(checkpointing="full"),
    "culm, bf16 weights": Culm(weights=torch.bfloat16),
    "autocast, whole model compiled": Plain(shards=False),
    "FSDP2, compiled blocks": Plain(shards=True),
}
