"""Tiny models of patches of bytes, one of each kind, whose choices are clear."""

import torch

from culm.bytelatent.blt import BLT, BLTBridge
from culm.bytelatent.hnet import HNet, HNetBridge
from culm.bytelatent.megabyte import MegaByte
from culm.bytelatent.model import PatchConfig, PatchModel
from culm.bytelatent.spacebyte import SpaceByte
from culm.compose import compose
from culm.config import parse
from culm.convert.models import Model
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig

TEXT = b"The quick brown fox, jumps over 12 lazy dogs\n\nand more of it, \xe6\x9d\xb1\xe4\xba\xac."
CONTEXT = 96


def patch_config(kind: str, **settings) -> PatchConfig:
    local = GQA(heads=2, window=7, qk_norm="head")
    byte = {"vocabulary": 262, "width": 16, "layers": 1, "context": CONTEXT, "attention": local}
    latent = {"width": 32, "layers": 1, "attention": GQA(heads=2)}
    encoder = {"width": 16, "layers": 1, "attention": local}
    small = TransformerConfig(
        vocabulary=262, width=16, layers=1, context=CONTEXT, attention=GQA(heads=2)
    )
    own = {
        "megabyte": {"patch": 4},
        "spacebyte": {"encoder": encoder},
        "hnet": {"encoder": encoder},
        "blt": {
            "encoder": encoder, "heads": 2, "ngrams": {"sizes": (3, 4), "buckets": 64},
            "patching": {"model": small, "max_bytes": 6},
        },
    }  # fmt: skip
    classes = {"megabyte": MegaByte, "spacebyte": SpaceByte, "hnet": HNet, "blt": BLT}
    return classes[kind](**{**byte, "latent": latent, **own[kind], **settings})


def patch_model(kind: str, seed: int = 3, **settings) -> PatchModel:
    """In evaluation mode, with large weights, and patches of about four bytes."""
    torch.set_num_threads(1)
    model = patch_config(kind, **settings).build(seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
        if isinstance(model.bridge, HNetBridge):
            generator = torch.Generator().manual_seed(seed)
            for layer in (model.bridge.q, model.bridge.k, model.bridge.residual):
                layer.weight.normal_(0, 0.3, generator=generator)
        if isinstance(model.bridge, BLTBridge):
            model.bridge.patcher.fit(tokens_of(TEXT))
    return model


def tokens_of(text: bytes) -> torch.Tensor:
    """(1, T) int64."""
    return torch.tensor([list(text)])


def config_of_file(name: str) -> TransformerConfig:
    """The model of a file in `configs/model`; one that needs the small model of bytes has it."""
    values = compose(name, "model").values
    config = parse(Model, values, "model")
    if not isinstance(config, BLT):
        return config
    patching = config.patching.model_copy(update={"model": config_of_file("entropy")})
    return config.model_copy(update={"patching": patching})
