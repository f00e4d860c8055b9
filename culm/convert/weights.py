"""Read weights out of a model and into one, tensor by tensor."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from culm import log
from culm.adapt.hyplora import HypLoRA, hyperbolic_adapters
from culm.adapt.lora import LoRALinear, has_adapter
from culm.adapt.multi_lora import adapter_names
from culm.adapt.quantize.linear import QuantizedGrouped, QuantizedLinear, quantized_layers
from culm.adapt.quantize.quantizer import LinearQuantizer
from culm.adapt.replace import replace
from culm.config import SettingError
from culm.convert.multipliers import folded
from culm.dtype import cast, name_of
from culm.model.linear import GroupedLinear, Linear
from culm.model.precision import full_precision
from culm.model.rope import Rotation
from culm.model.transformer import Transformer, TransformerConfig

PLAIN = {torch.float64, torch.float32, torch.bfloat16, torch.float16}  # interchangeable
COPY = "copy the folder again, with the settings that belong to its weights"
SAMPLED = 4096  # numbers of a tensor in its fingerprint, about


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model with adapters, which has no single set of weights to write."""
    if has_adapter(model) or adapter_names(model):
        raise SettingError("model: it has adapters; merge them first (culm.adapt.merge)")


def set_precision(model: Transformer, dtype: torch.dtype, source: str = "model") -> None:
    """Cast the parameters of a model; those of parts that compute in fp32 (`culm.model.precision`)
    become fp32. Buffers (angles, scales and selection biases) stay as they are.

    Raises:
        SettingError: a number is too large for the dtype; it names `source`.
    """
    kept = full_precision(model)
    for name, weight in model.named_parameters():
        kind = torch.float32 if name in kept else dtype
        if weight.dtype != kind:
            weight.data = cast(weight.data, kind, f"{source}: {name}")


def note_dropped_heads(model: Transformer) -> None:
    """Report that a file or a trained model omits the heads of multi-token prediction."""
    if model.config.mtp is not None:
        count = model.config.mtp.depth
        log.say(f"Multi-token prediction: its heads ({count}) are omitted.")


def plain_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name in a model of plain layers, detached.

    Quantised layers are dequantised one at a time; a tied head and the heads of multi-token
    prediction are skipped. The factors of a scaling rule are folded in.
    """
    refuse_adapters(model)
    if hyperbolic_adapters(model):
        raise SettingError(
            "model: its hyperbolic adapters are not linear, so they cannot be merged and no other "
            "format has them; keep its Culm folder"
        )
    for name, tensor in _below(model):
        yield name, folded(model.config, name, tensor)


def _below(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The same for the base of a model with adapters, without folded factors."""
    packed = quantized_layers(model)
    for full, module in model.named_modules():
        name = full.removesuffix(".base")
        if name.startswith("mtp."):
            continue
        if isinstance(module, QuantizedLinear | QuantizedGrouped):
            if full not in packed:  # one expert of several
                continue
            yield f"{name}.weight", module.dequantize()
            if module.bias is not None:
                yield f"{name}.bias", module.bias
        elif not (isinstance(module, LoRALinear) or (name == "head" and model.config.tied)):
            for part, value in module.state_dict().items():
                if "." not in part:  # its own, not of a module within
                    yield f"{name}.{part}", value.detach()


def fingerprint(model: Transformer, without: Collection[str] = ()) -> str:
    """SHA-256 of the base of a model with adapters: names, shapes and a sample of its weights.

    It is the same in fp32 and bf16, and for quantised and dequantised layers. without: modules that
    are skipped, since an adapter brings its own.
    """
    digest = hashlib.sha256()
    for name, tensor in _below(model):
        if name.rpartition(".")[0] in without:
            continue
        step = tensor.numel() // SAMPLED | 1  # odd, so that samples are not all in one column
        sample = tensor.flatten()[::step].float().bfloat16().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def assemble(
    config: TransformerConfig,
    tensors: Iterable[tuple[str, Tensor]],
    source: str,
    device: torch.device | str = "cpu",
    quantized: Mapping[str, LinearQuantizer] | None = None,
    adapter: HypLoRA | None = None,
) -> Transformer:
    """A model that owns the given tensors; none is copied or initialised first.

    quantized: the quantiser of each quantised layer, by name; its tensors are the packed ones.
    adapter: the settings of hyperbolic adapters, whose tensors are there too.
    source: the file or folder, for messages.

    Raises:
        SettingError: a tensor is missing, unknown, not finite, or of another shape or dtype.
    """
    model = empty(config, source)
    quantized = quantized or {}
    with torch.device("meta"):
        if adapter is not None:
            adapter.apply(model, seed=0)
            model.requires_grad_(True)
        _replace_quantized(model, quantized, source)
    expected = stored(model)
    taken = {name: tensor.to(device) for name, tensor in fitting(tensors, expected, source)}
    model.load_state_dict(taken, strict=False, assign=True)
    if config.tied:
        model.tie()
    for module in model.modules():
        if isinstance(module, Rotation):
            module.to_empty(device=device).reset()
        elif isinstance(module, QuantizedLinear):
            module.prepare()
    return model


def empty(config: TransformerConfig, source: str) -> Transformer:
    """The model without weights, on the meta device.

    Raises:
        SettingError: a size is beyond what a tensor can have.
    """
    try:
        return config.build(device="meta")
    except (TypeError, OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"{source}: no model can have its sizes ({reason})") from None


def stored(model: Transformer) -> dict[str, Tensor]:
    """The tensors in a file of the model, by name; a tied head is there once."""
    weights = model.state_dict()
    if model.config.tied:
        del weights["head.weight"]
    return weights


def fitting(
    tensors: Iterable[tuple[str, Tensor]], expected: Mapping[str, Tensor], source: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come, each checked against the one of its name; none may be missing.

    Raises:
        SettingError: as `assemble`.
    """
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise SettingError(f"{source}: tensor {name} occurs twice; {COPY}")
        seen.add(name)
        if name in expected:
            _check(name, tensor, expected[name], source)
            yield name, tensor
    differing = {"are missing": expected.keys() - seen, "are unknown": seen - expected.keys()}
    wrong = [f"{len(names)} {what}: {_listed(names)}" for what, names in differing.items() if names]
    if wrong:
        raise SettingError(
            f"{source}: its tensors do not match its settings: {'; '.join(wrong)}; {COPY}"
        )


def _listed(names: Iterable[str]) -> str:
    """Names with `#` for the numbers of layers, each with its count."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in sorted(names))
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())


def _replace_quantized(
    model: Transformer, quantized: Mapping[str, LinearQuantizer], source: str
) -> None:
    def empty(name: str, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, Linear | GroupedLinear)
        return quantized[name].empty(layer)

    kinds = (Linear, GroupedLinear)
    layers = {name for name, module in model.named_modules() if type(module) in kinds}
    if unknown := sorted(quantized.keys() - layers):
        raise SettingError(f"{source}: {unknown[0]} is quantised there but is not a layer here")
    if quantized:
        replace(model, lambda name, _: name in quantized, empty)


def _check(name: str, tensor: Tensor, expected: Tensor, source: str) -> None:
    if tensor.shape != expected.shape:
        there, here = tuple(tensor.shape), tuple(expected.shape)
        raise SettingError(f"{source}: tensor {name} has shape {there}, its settings say {here}")
    if tensor.dtype != expected.dtype and not {tensor.dtype, expected.dtype} <= PLAIN:
        kinds = f"{name_of(tensor.dtype)}, not {name_of(expected.dtype)}"
        raise SettingError(f"{source}: tensor {name} holds {kinds}; {COPY}")
    cast(tensor, tensor.dtype, f"{source}: tensor {name}")
