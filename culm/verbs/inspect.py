"""`culm inspect`: the parts of a model."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree
from torch import nn

from culm.convert.load import read
from culm.dtype import name_of
from culm.plan.model import cost_of, forward_flops
from culm.verbs.format import count, flops, size


def show_model(path: str) -> None:
    """Print the tree of modules with shapes, then parameters, cache and FLOPs per token."""
    model, tokenizer = read(path, "cpu")
    console = Console(highlight=False, soft_wrap=True)
    tree = Tree(f"[bold]{escape(path)}[/]")
    _grow(tree, model)
    console.print(tree, overflow="ignore", crop=False)
    config, dtype = model.config, name_of(model.dtype)
    held = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    cost = cost_of(config)  # of the plain model, also where it is quantised
    weights = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    model.to("meta")  # a cache on meta takes no memory
    one, two, full = (model.cache(1, length).bytes for length in (1, 2, config.context))
    compute = forward_flops(model, config.context) / config.context
    for name, value in (
        ("parameters", f"{count(cost.parameters)}, shared ones once"),
        (
            "active",
            f"{count(cost.active)} per token, {count(cost.embedding)} in the embedding",
        ),
        ("in memory", f"{size(weights)} of weights; computes in {dtype}"),
        ("cache", f"{size(two - one)} per token, {size(full)} in full"),
        ("compute", f"{flops(compute)} per token, at {config.context} tokens"),
        ("tokenizer", f"{tokenizer.vocabulary:,} tokens"),
    ):
        console.print(f"{name:<12}{value}", markup=False)


def _grow(tree: Tree, module: nn.Module) -> None:
    """Children with the shapes of their own tensors; equal blocks once."""
    for _, group in groupby(module.named_children(), lambda item: _outline(item[1])):
        names, children = zip(*group, strict=True)
        label = names[0] if len(names) == 1 else f"{names[0]} - {names[-1]}"
        _grow(tree.add(f"{label}  [dim]{escape(_about(children[0]))}[/]"), children[0])


def _about(module: nn.Module) -> str:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors)
    return f"{type(module).__name__} {shapes}".strip()


def _outline(module: nn.Module) -> str:
    """Equal for modules that look the same."""
    return "\n".join(f"{name} {_about(part)}" for name, part in module.named_modules())
