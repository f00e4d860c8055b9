"""The bytes of one forward, with those before them: in the same row, or in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.bytelatent.cache import PatchCache
from culm.bytelatent.patches import Patches, columns_of, taken
from culm.model.context import Context


@dataclass(frozen=True)
class Reading:
    """tokens: (B, T) bytes; context: of them. cache: of earlier forwards, if they continue some.

    own: the context for the bridge's own model, if there is one.

    Values of a byte or patch have a name under which the cache keeps them. Without a cache, what
    came before a byte is in its row.
    """

    tokens: Tensor
    context: Context
    cache: PatchCache | None = None
    own: Context | None = None

    @property
    def known(self) -> Tensor:
        """(B, T): how many bytes before each belong to its document and can be read."""
        positions = self.context.positions
        if self.cache is not None:
            return positions
        return positions.minimum(torch.arange(positions.shape[1], device=positions.device))

    @property
    def real(self) -> Tensor | None:
        """(B, T) bool, False for padding; None: there is none."""
        context = self.context
        if self.cache is not None and context.view.ends is not None:
            return context.positions < context.view.ends[:, None]
        return None if context.padding is None else ~context.padding

    def keep(self, name: str, values: Tensor) -> Tensor:
        """The values (B, T, ...) of the bytes as they are; the cache keeps them."""
        if self.cache is not None:
            self.cache.write(name, self.context.view.slot, self.context.positions, values)
        return values

    def before(self, name: str, values: Tensor, steps: int = 1) -> Tensor:
        """(B, T, ...): the value of the byte `steps` bytes before each; 0 where there is none.

        values: (B, T, ...), which `keep` has seen.
        """
        if self.cache is not None:
            places = (self.context.positions - steps).clamp_min(0)
            found = self.cache.read(name, self.context.view.slot, places)
        else:
            length = values.shape[1]
            found = F.pad(values, (*[0, 0] * (values.dim() - 2), steps, 0))[:, :length]
        missing = (self.known < steps).view(*self.known.shape, *[1] * (values.dim() - 2))
        return found.to(values.dtype).masked_fill(missing, 0)

    def last(self, name: str, marks: Tensor) -> tuple[Tensor, Tensor]:
        """How many bytes ago the last mark was, (B, T) each: at a byte or before it, and before it.

        marks: (B, T) bool, True at the first byte of a document; before that one it is 1.
        """
        clock = self.context.positions
        if self.cache is None:
            clock = torch.arange(clock.shape[1], device=clock.device).expand(clock.shape)
        found = clock.where(marks, -1).cummax(1).values
        if self.cache is not None:
            slot, first = self.context.view.slot, self.context.positions[:, :1]
            earlier = self.cache.read(name, slot, (first - 1).clamp_min(0))
            found = found.maximum(earlier.where(first > 0, -1))
        before = self.before(name, self.keep(name, found))
        return clock - found, (clock - before).masked_fill(self.known == 0, 1)

    def window(
        self, name: str, values: Tensor, patches: Patches, size: int
    ) -> tuple[Tensor, Tensor]:
        """The last `size` bytes of each patch, oldest first: (B, N, size, ...), and whether each is
        there: (B, N, size) bool. values: (B, T, ...), which `keep` has seen.
        """
        back = torch.arange(size - 1, -1, -1, device=self.tokens.device)
        known = self.known.gather(1, patches.columns)
        columns = patches.columns
        if self.cache is not None:
            columns = self.context.positions.gather(1, columns)
        places = (columns[..., None] - back).clamp_min(0)
        if self.cache is not None:
            found = self.cache.read(name, self.context.view.slot, places).to(values.dtype)
        else:
            found = taken(values, places)
        return found, back <= known[..., None]

    def patches(self, ends: Tensor, bytes_per_patch: float | None = None) -> Patches:
        """The patches that these bytes end. ends: (B, T) bool, True at the first byte of a document
        too. bytes_per_patch: expected, in a plan, where no byte has a value.
        """
        real = self.real
        ends = ends if real is None else ends & real
        columns, counts = columns_of(ends, bytes_per_patch)
        number = ends.cumsum(1) - 1
        if self.cache is None:
            number = number.clamp_min(0)
            starts = number.where(self.known == 0, 0).cummax(1).values
            positions = (number - starts).gather(1, columns)
            documents = self.context.documents
            own = None if documents is None else documents.gather(1, columns)
            return Patches(columns, counts, positions, number, own)
        slot, first = self.context.view.slot, self.context.positions[:, 0]
        last = self.cache.read("patches", slot, (first - 1).clamp_min(0)[:, None])[:, 0]
        last = last.where(first > 0, 0)
        number = self.keep("patches", number + last[:, None] + 1) - 1
        places = torch.arange(columns.shape[1], device=columns.device)
        spare = self.cache.tensors[0].shape[1] - 1
        positions = (last[:, None] + places).clamp_max(spare)
        return Patches(columns, counts, positions, number, ends=last + counts)

    def spread(self, values: Tensor, patches: Patches) -> Tensor:
        """(B, T, D): for each byte the value of the patch that ended last, of values (B, N, D)."""
        if self.cache is None:
            return taken(values, patches.numbers)
        slot = self.context.view.slot
        self.cache.write("latent", slot, patches.positions, values)
        return self.cache.read("latent", slot, patches.numbers.clamp_min(0)).to(values.dtype)
