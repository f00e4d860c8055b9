"""The objective of a run, around its model; and further models that it reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from culm import log
from culm.adapt.float8 import check_float8, use_float8
from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.masked import with_mask
from culm.adapt.quantize.linear import is_quantized
from culm.adapt.quantize.qat import fake_quantize
from culm.config import SettingError
from culm.convert.load import load_model
from culm.device import choose_precision
from culm.dtype import activations_of
from culm.model.ability import require_tokens_alone
from culm.model.backend import place
from culm.model.precision import full_precision
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective
from culm.run.reads import digest_of
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer


class ModelLoader:
    """Reads further models of a run, such as a reward model, and places them like the policy.

    tokenizer: of the policy, whose token ids they read. compared: whether their digests are wanted,
    for a checkpoint or to compare with one.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        tokenizer: Tokenizer | None = None,
        compared: bool = True,
    ) -> None:
        self._dtype = activations_of(precision_of(config, device))
        self._backend, self._device = config.train.attention_backend, device
        self._tokenizer, self._compared = tokenizer, compared
        self.loaded: list[Transformer] = []
        self.names: list[str] = []  # of each, the setting and its value
        self.digests: dict[str, str] = {}  # by these names

    def __call__(self, setting: str, path: str) -> Transformer:
        """The model of a path, in fp32. setting: the one that names it.

        Raises:
            SettingError: it is not there, cannot be read, or has another tokenizer.
        """
        try:
            model, own = load_model(path)
            require_tokens_alone(model)
        except SettingError as error:
            raise SettingError(f"{setting}: {error}") from error
        if self._tokenizer is not None and own.fingerprint != self._tokenizer.fingerprint:
            raise SettingError(
                f"{setting}: the tokenizer of {path} differs from that of the policy, whose token "
                "ids it would read; use a model that was trained from the same start"
            )
        for weight in model.parameters():
            weight.data = weight.data.float()
        self.names.append(f"{setting}={path}")
        if self._compared:
            self.digests[self.names[-1]] = digest_of(path)
        self.loaded.append(place(model, self._device, self._dtype, self._backend, training=True))
        return model


def build_objective(
    config: RunConfig, model: Transformer, device: torch.device, load: Load
) -> Objective:
    """The objective around the model, on the device; ready to be parallelised.

    head -> adapter or fake quantisation -> device, precisions, attention backend -> objective
    """
    train = config.train
    if train.adapter is None and is_quantized(model):
        raise SettingError(
            "train.adapter: quantised weights cannot be trained; use train.adapter=lora, or start "
            "from the model that they were made of"
        )
    for change in change_model(config, model):
        log.say(change)
    dtype = activations_of(precision_of(config, device))
    place(model, device, dtype, train.attention_backend, training=True)
    # What it owns besides models, such as a head, is made on the CPU.
    objective = train.objective.build(model, load, config.seed).to(device)
    if train.precision == "fp8" and device.type != "meta":
        check_float8(device)
        count = sum(map(use_float8, objective.trained().values()))
        log.say(f"Training {count} linear layers with matmuls in fp8.")
    if train.weights == "bf16":
        _round_weights(list(objective.models().values()))
    return objective


def _round_weights(models: Sequence[Transformer]) -> None:
    """To bf16, but for parts in fp32 that no model learns: FSDP2 needs one dtype for what learns,
    and a reference the weights of the policy.
    """
    named = [(full_precision(model), dict(model.named_parameters())) for model in models]
    learned = {name for _, own in named for name, weight in own.items() if weight.requires_grad}
    for kept, own in named:
        for name, weight in own.items():
            if name in learned or name not in kept:
                weight.data = weight.data.bfloat16()


def change_model(config: RunConfig, model: Transformer) -> list[str]:
    """Give the model the head that the objective trains, and adapters or fake quantisation.

    Returns what was changed, a sentence each.
    """
    train, changes = config.train, list[str]()
    if not train.objective.reads_concepts:
        require_tokens_alone(model)
    if train.objective.head == "vocabulary" and model.config.head == "scalar":
        raise SettingError(
            f"train.objective: {train.objective.kind} trains a language model, and the model has a "
            "scalar head; start from the model that it was made of"
        )
    scalar = train.objective.head == "scalar"
    if scalar and model.config.head != "scalar":
        with_scalar_head(model, config.seed, train.objective.scores)
    if scalar and model.config.scores != train.objective.scores:
        raise SettingError(
            f"train.objective: {train.objective.kind} trains {train.objective.scores} heads, and "
            f"the model has {model.config.scores}; give train.objective.heads="
            f"{model.config.scores}, or start from a language model"
        )
    fills = train.objective.fills_masks
    if fills and not model.config.masked:
        with_mask(model)
        changes.append("The model fills in masked tokens: a row for the mask was added.")
    if model.config.masked and not fills:
        raise SettingError(
            f"train.objective: {train.objective.kind} needs the next token, and the model fills in "
            "masked ones; use train.objective=masked_diffusion, or another start"
        )
    if train.adapter is not None:
        count = train.adapter.apply(model, config.seed)
        if scalar and "head" not in adapters_of(model):  # it is trained, new or not
            model.head.requires_grad_(True)
        name = "LoRA" if isinstance(train.adapter, LoRA) else "hyperbolic"
        changes.append(f"Training {name} adapters on {count} layers; base weights are frozen.")
    if train.qat is not None:
        count = fake_quantize(model, train.qat)
        changes.append(f"Training {count} layers with their weights quantised in every forward.")
    return changes


def precision_of(config: RunConfig, device: torch.device) -> str:
    """Of activations; the faster one of the device unless given."""
    given = config.train.precision
    return choose_precision(device) if given == "auto" else given
