"""Prompts that begin alike are read once: blocks of keys and values are kept.

tokens of a row   [ block 0 ][ block 1 ][ block 2 ][ rest ]
keys                 k0 ------> k1 ------> k2        SHA-256 of the key before and of the tokens
kept              {k0: 5, k1: 2, k7: 0, ...}         the least recently used block is replaced

The first key also depends on the salt and the adapter of the request and on the version of the
weights. A request whose prompt begins with kept blocks gets copies of them in its slot and reads
the rest.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

import torch

from culm.engine.request import Running
from culm.model.cache import Cache, FullCache

BLOCK = 32  # tokens; of 1,000 shared ones up to 31 are read again


class PrefixCache:
    """Blocks of prompts and answers that were read, least recently used first.

    cache: the slots that blocks are copied from and to. tokens: in all blocks together, at
    most; 0: keep none. ahead: number of tokens after a block on which its entries depend: those of
    heads of multi-token prediction do.

    Only a `FullCache` has an entry for every token. Kinds of layers that prevent the cache are
    named in `obstacles`; nothing is kept then.

    Raises:
        ValueError: `tokens` is less than a block, or negative.
    """

    def __init__(self, cache: Cache, tokens: int, ahead: int = 0) -> None:
        if tokens and tokens < BLOCK:
            raise ValueError(
                f"prefix_tokens: {tokens} is less than a block of {BLOCK} tokens; use 0 for no "
                "prefix cache"
            )
        kinds = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, FullCache)}
        self.obstacles = sorted(kinds)
        self.blocks = 0 if kinds else tokens // BLOCK
        self._ahead, self._version = ahead, 0
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # key -> number of the block
        self._free = list(range(self.blocks))
        tensors = [tensor for layer in cache.layers for tensor in layer.tensors]
        self._pairs = [  # tensors of the slots (slots, K, length, D), of blocks (blocks, K, 32, D)
            (slots, slots.new_zeros(self.blocks, slots.shape[1], BLOCK, slots.shape[3]))
            for slots in (tensors if self.blocks else ())
        ]

    def clear(self) -> None:
        """Forget all blocks; rows that are in a slot now will not be kept either."""
        self._version += 1
        self._kept.clear()
        self._free = list(range(self.blocks))

    def find(self, row: Running) -> int:
        """Number of tokens at the start of a row that need not be read: never the last one."""
        if row.version != self._version:
            row.version, row.keys = self._version, []
        found = min(len(self._known(row)) * BLOCK, row.length - 1)
        if not row.output:
            row.cached = found
        return found

    def missing(self, row: Running) -> list[bytes]:
        """Keys of the blocks of a row that are not kept, after those that `find` has counted."""
        return self._keys(row)[len(self._known(row)) :]

    def restore(self, row: Running, slot: int) -> int:
        """Copy what `find` has found into a slot; returns the number of tokens."""
        tokens, known = self.find(row), self._known(row)
        if tokens:
            self._touch(known)
            index = torch.tensor([self._kept[key] for key in known])
            for slots, blocks in self._pairs:
                entries = blocks[index.to(blocks.device)].transpose(0, 1).flatten(1, 2)
                slots[slot, :, : entries.shape[1]] = entries
        return tokens

    def store(self, row: Running, slot: int, tokens: int) -> None:
        """Keep the complete blocks of the first `tokens` tokens of a slot, which a row has read."""
        if row.version != self._version:
            return
        keys = self._keys(row)[: max(tokens - self._ahead, 0) // BLOCK]
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        self._touch(keys)  # so that none of them is replaced
        if new:
            numbers = [self._number() for _ in new]
            source, target = torch.tensor(new), torch.tensor(numbers)
            for slots, blocks in self._pairs:
                entries = slots[slot, :, : len(keys) * BLOCK].unflatten(1, (-1, BLOCK))
                entries = entries[:, source.to(blocks.device)].transpose(0, 1)
                blocks[target.to(blocks.device)] = entries
            self._kept.update(zip((keys[place] for place in new), numbers, strict=True))
            self._touch(keys)

    # -----------------------------------------------------------------------------------------

    def _keys(self, row: Running) -> list[bytes]:
        """One for each complete block of a row, up to the number of blocks that are kept."""
        count = min(max(row.length - self._ahead, 0) // BLOCK, self.blocks)
        if count > len(row.keys):
            tokens = row.tokens_from(0)
            for start in range(len(row.keys) * BLOCK, count * BLOCK, BLOCK):
                content = array("q", tokens[start : start + BLOCK + self._ahead]).tobytes()
                before = row.keys[-1] if row.keys else self._root(row)
                row.keys.append(hashlib.sha256(before + content).digest())
        return row.keys

    def _root(self, row: Running) -> bytes:
        source = (row.request.salt, row.request.adapter, self._version)
        return hashlib.sha256(repr(source).encode()).digest()

    def _known(self, row: Running) -> list[bytes]:
        """Keys of the first blocks of a row that are kept without a gap."""
        keys = self._keys(row)
        gap = next((n for n, key in enumerate(keys) if key not in self._kept), len(keys))
        return keys[:gap]

    def _touch(self, keys: list[bytes]) -> None:
        """These were used last, the first of them at the end: no other is found without it."""
        for key in reversed(keys):
            if key in self._kept:
                self._kept.move_to_end(key)

    def _number(self) -> int:
        """Of a free block, or of the least recently used one."""
        return self._free.pop() if self._free else self._kept.popitem(last=False)[1]
