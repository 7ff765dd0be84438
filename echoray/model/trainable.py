"""What trains in each stage, as data: patterns over parameter names (She et al., EchoVLM, section 3.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from echoray.config import LoraConfig
from echoray.errors import ModelLoadError

MOE_PATTERNS = ("*.mlp.router.*", "*.mlp.experts.*", "*.mlp.mix.*")
# Qwen2-VL's attention and projector: where stage 2 puts low-rank adapters (Appendix B).
LORA_TARGETS = (
    r".*\bvisual\.blocks\.\d+\.attn\.(qkv|proj)",
    r".*\bvisual\.merger\.mlp\.(0|2)",
    r".*\blanguage_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
)


@dataclass(frozen=True)
class Stage:
    """A stage's name, the parameters it trains, and whether low-rank adapters are added to the base."""

    name: str
    train: tuple[str, ...]
    optional: tuple[str, ...] = ("*.mlp.shared_expert.*",)
    lora: bool = False


STAGES = {
    "align": Stage("align", MOE_PATTERNS),
    "finetune": Stage("finetune", (*MOE_PATTERNS, "*.lora_*"), lora=True),
}


def apply_stage(model: nn.Module, stage: Stage, lora: LoraConfig | None, *, seed: int) -> None:
    """Freeze everything but what ``stage`` names, adding adapters in place first where it has them.

    Raises ModelLoadError for a pattern that matches no parameter.
    """
    if stage.lora and not has_adapters(model):
        if lora is None:
            raise ModelLoadError(f"stage {stage.name} needs LoRA settings", hint="set train.finetune.lora")
        add_adapters(model, lora, seed=seed)
    matched = dict.fromkeys(stage.train, 0)
    for name, parameter in model.named_parameters():
        hits = [pattern for pattern in (*stage.train, *stage.optional) if fnmatch(name, pattern)]
        parameter.requires_grad_(bool(hits))
        for pattern in hits:
            if pattern in matched:
                matched[pattern] += 1
    empty = [pattern for pattern, count in matched.items() if not count]
    if empty:
        raise ModelLoadError(
            f"stage {stage.name}: no parameter matches {', '.join(empty)}",
            hint="a dense model (model.num_experts=0) has no experts to train",
        )


def add_adapters(model: nn.Module, lora: LoraConfig, *, seed: int) -> None:
    """Put LoRA layers of PEFT into ``model`` in place; A is drawn from ``seed``, B starts at zero.

    Raises ModelLoadError where one of LORA_TARGETS matches no module.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = [name for name, _ in model.named_modules()]
    empty = [target for target in LORA_TARGETS if not any(re.fullmatch(target, name) for name in names)]
    if empty:
        raise ModelLoadError(f"LoRA: no module matches {', '.join(empty)}", hint="adapt a whole EchoVLM")
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(LORA_TARGETS),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)


def has_adapters(model: nn.Module) -> bool:
    """Whether LoRA layers are in the model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name; what a checkpoint holds."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a checkpoint's parameters back; ModelLoadError where a name or shape does not fit."""
    parameters = dict(model.named_parameters())
    unknown = sorted(state.keys() - parameters.keys())
    common = state.keys() & parameters.keys()
    wrong = sorted(name for name in common if state[name].shape != parameters[name].shape)
    if unknown or wrong:
        raise ModelLoadError(
            f"checkpoint does not fit the model: not known {unknown[:3]}, other shape {wrong[:3]}",
            hint="use the configuration that the checkpoint was trained with",
        )
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters by part, and how many of them train."""
    counts = {"vision": 0, "projector": 0, "language": 0, "experts": 0, "adapters": 0, "trainable": 0}
    for name, parameter in model.named_parameters():
        counts[_part(name)] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
    return counts


def _part(name: str) -> str:
    if ".lora_" in name:
        return "adapters"
    if any(fnmatch(name, pattern) for pattern in (*MOE_PATTERNS, "*.mlp.shared_expert.*")):
        return "experts"
    if ".visual.merger." in name:
        return "projector"
    return "vision" if ".visual." in name else "language"
