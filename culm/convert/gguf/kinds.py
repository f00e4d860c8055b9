"""The type of each tensor of a GGUF file, as chosen by llama.cpp's quantiser.

kind                     matrices        head      v and down of some layers
f32, f16, bf16, q8_0     as the name     the same  the same
q4_0, q4_1, q5_0, q5_1   as the name     Q6_K      the same
q6_k                     Q6_K            Q6_K      Q6_K
q5_k_m                   Q5_K            Q6_K      Q6_K
q4_k_m                   Q4_K            Q6_K      Q6_K

A tied embedding counts as the head. Some layers are the first and the last eighth, and every third
between. Norms, biases, routers and learned positions are always F32, as llama.cpp computes them.
llama.cpp also gives more bits to attention in models with eight experts, and to a joined matrix of
q, k and v; here both have the type of the name. Rows that do not fill the blocks of their type get
the next type in `SMALLER`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Kind


@dataclass(frozen=True)
class Mixture:
    """Types by the place of a tensor; `head` and `some` default to `most`."""

    file_type: LlamaFileType
    most: Kind
    head: Kind | None = None
    some: Kind | None = None


KINDS = {
    "f32": Mixture(LlamaFileType.ALL_F32, Kind.F32),
    "f16": Mixture(LlamaFileType.MOSTLY_F16, Kind.F16),
    "bf16": Mixture(LlamaFileType.MOSTLY_BF16, Kind.BF16),
    "q8_0": Mixture(LlamaFileType.MOSTLY_Q8_0, Kind.Q8_0),
    "q6_k": Mixture(LlamaFileType.MOSTLY_Q6_K, Kind.Q6_K),
    "q5_k_m": Mixture(LlamaFileType.MOSTLY_Q5_K_M, Kind.Q5_K, Kind.Q6_K, Kind.Q6_K),
    "q5_1": Mixture(LlamaFileType.MOSTLY_Q5_1, Kind.Q5_1, Kind.Q6_K),
    "q5_0": Mixture(LlamaFileType.MOSTLY_Q5_0, Kind.Q5_0, Kind.Q6_K),
    "q4_k_m": Mixture(LlamaFileType.MOSTLY_Q4_K_M, Kind.Q4_K, Kind.Q6_K, Kind.Q6_K),
    "q4_1": Mixture(LlamaFileType.MOSTLY_Q4_1, Kind.Q4_1, Kind.Q6_K),
    "q4_0": Mixture(LlamaFileType.MOSTLY_Q4_0, Kind.Q4_0, Kind.Q6_K),
}
# For rows whose length is no multiple of 256; F16 if it is no multiple of 32 either.
SMALLER = {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}

EXACT = (".ffn_gate_inp.weight", "position_embd.weight")  # routers decide, and tables are small
MORE = tuple(
    f".{part}.weight" for part in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp")
)


def kinds_of(
    shapes: Mapping[str, Sequence[int]], mixture: Mixture, layers: int
) -> tuple[dict[str, Kind], str]:
    """The type of each tensor, and one sentence about those whose rows do not fill its blocks.

    shapes: by GGUF name, rows last. The sentence is empty if all have the wanted type.
    """
    wanted = {name: _wanted(name, shape, mixture, layers, shapes) for name, shape in shapes.items()}
    kinds = {name: _fitting(kind, shapes[name][-1]) for name, kind in wanted.items()}
    others = [name for name in kinds if kinds[name] is not wanted[name]]
    if not others:
        return kinds, ""
    name, matrices = others[0], sum(len(shape) > 1 for shape in shapes.values())
    block = GGML_QUANT_SIZES[wanted[name]][0]
    return kinds, (
        f"{len(others)} of {matrices} matrices have rows that do not fill blocks of {block} and "
        f"get another type; {name} of {shapes[name][-1]} is {kinds[name].name}, not "
        f"{wanted[name].name}"
    )


def _wanted(
    name: str, shape: Sequence[int], mixture: Mixture, layers: int, names: Mapping[str, object]
) -> Kind:
    if len(shape) == 1 or not name.endswith(".weight") or name.endswith(EXACT):
        return Kind.F32
    if name == ("output.weight" if "output.weight" in names else "token_embd.weight"):
        return mixture.head or mixture.most
    if name.endswith(MORE) and mixture.some:
        return mixture.some if _gets_more(int(name.split(".")[1]), layers) else mixture.most
    return mixture.most


def _gets_more(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(kind: Kind, length: int) -> Kind:
    """The type itself, or the next with smaller blocks that rows of this length fill."""
    if length % GGML_QUANT_SIZES[kind][0]:
        kind = SMALLER.get(kind, Kind.F16)
    return Kind.F16 if length % GGML_QUANT_SIZES[kind][0] else kind
