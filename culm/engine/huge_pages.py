"""Moves the weights of a model into huge pages, on Linux.

A decoding step reads every weight once. In pages of 4 KiB the processor looks up an address for
every 64 cache lines that it reads; in pages of 2 MiB hardly ever.
"""

from __future__ import annotations

import mmap
from weakref import WeakSet

import torch
from torch import nn

from culm.malloc import release_freed_memory

PAGE = 1 << 21
ALIGNED = 64  # bytes: a cache line
RELEASED = 1 << 26  # bytes that are moved before what they leave is given back

_moved: WeakSet[nn.Module] = WeakSet()


def use_huge_pages(model: nn.Module) -> bool:
    """Move parameters and buffers into one block of memory, for which huge pages are asked.

    Their values stay, and so do the objects; False where the system has no such pages. It is a
    wish: the kernel may grant it for some pages or none, which costs speed only.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    every = (*model.parameters(), *model.buffers())
    tensors = {tensor.data_ptr(): tensor for tensor in every if tensor.numel()}
    if advice is None or model in _moved:  # another decoder may have the addresses of its weights
        return advice is not None
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values()]
    block = mmap.mmap(-1, sum(sizes) + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        block.madvise(advice)
    except OSError:  # a kernel without them
        return False
    _moved.add(model)
    place, left = -torch.frombuffer(block, dtype=torch.uint8).data_ptr() % PAGE, 0
    for tensor, size in zip(tensors.values(), sizes, strict=True):
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            moved = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=place)
            tensor.data = moved.view(tensor.shape).copy_(tensor)
        place, left = place + size, left + size
        if left >= RELEASED:
            release_freed_memory()
            left = 0
    release_freed_memory()
    return True
