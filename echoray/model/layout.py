"""The directory layouts of a model, and how the weights of one are made of another's.

"qwen2_vl" is the dense base; "released" is the public EchoVLM checkpoint (flat configuration, one tensor per
expert); "echovlm" is what EchoRay exports (stacked experts). In memory all have the names of our model.
Shape legend: E experts, I expert width, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice, product
from typing import Literal

from echoray.errors import ModelLoadError
from echoray.model.weights import Piece, Planned, TensorInfo

Layout = Literal["qwen2_vl", "echovlm", "released"]
RELEASED_ARCHITECTURE = "Qwen2VLMOEForConditionalGeneration"

Rules = tuple[tuple[re.Pattern[str], str], ...]

# On disk (all layouts) and in memory.
_PREFIXES = (("visual.", "model.visual."), ("model.", "model.language_model."))
# Within a decoder layer: released, ours. No name of one side is changed by the rules towards that side.
_MOE_NAMES = (
    ("coefficient.", "mlp.mix.coefficient."),
    ("moe.gate.", "mlp.router."),
    ("moe.shared_expert_gate.", "mlp.mix.shared_gate."),
    ("moe.shared_expert.", "mlp.shared_expert."),
    ("moe.experts.", "mlp.experts."),
)
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
# A stacked tensor and the projections of which it is made, one below the other.
_STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_STACK = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


def _rules(pairs: Iterable[tuple[str, str]]) -> Rules:
    return tuple((re.compile(rf"(\blayers\.\d+\.){re.escape(old)}"), rf"\g<1>{new}") for old, new in pairs)


TO_OURS = _rules(_MOE_NAMES)
_TO_RELEASED = _rules((ours, released) for released, ours in _MOE_NAMES)


def name_in_memory(name: str) -> str:
    """The name that the loaded model gives a tensor of any layout; a name in memory stays as it is."""
    if not name.startswith(tuple(memory for _, memory in _PREFIXES)):
        name = _with_prefix(name, _PREFIXES)
    return _renamed(name, TO_OURS)


def name_on_disk(name: str, layout: Layout) -> str:
    """The name in a file of ``layout`` of a tensor in memory."""
    name = _with_prefix(name, [(memory, disk) for disk, memory in _PREFIXES])
    return _renamed(name, _TO_RELEASED) if layout == "released" else name


def plan_in_memory(tensors: Mapping[str, TensorInfo], *, hint: str) -> dict[str, Planned]:
    """The model's own tensors, made of those in the files; single experts are stacked per layer.

    ``gate_up_proj`` is (E, 2I, H), ``down_proj`` (E, H, I). Raises ModelLoadError where an expert lacks a
    projection or has one of another shape or dtype than its layer's first.
    """
    plan: dict[str, Planned] = {}
    layers: dict[str, dict[tuple[int, str], str]] = {}
    for name, info in tensors.items():
        renamed = name_in_memory(name)
        if match := _EXPERT.fullmatch(renamed):
            layers.setdefault(match[1], {})[int(match[2]), match[3]] = name
        elif renamed in plan:
            raise ModelLoadError(f"{renamed} is there under two names", hint=hint)
        else:
            plan[renamed] = Planned(info, (Piece(name),))
    for prefix, experts in layers.items():
        count = max(index for index, _ in experts) + 1
        wanted = product(range(count), ("gate_proj", "up_proj", "down_proj"))
        lacking = list(islice((f"{i}.{part}" for i, part in wanted if (i, part) not in experts), 5))
        if lacking:
            raise ModelLoadError(f"{prefix}: missing {', '.join(lacking)}", hint=hint)
        for stack, parts in _STACKS.items():
            names = [experts[one] for one in product(range(count), parts)]
            plan[f"{prefix}.{stack}"] = _stacked(names, tensors, count, hint)
    return plan


def plan_on_disk(plan: Mapping[str, Planned], layout: Layout) -> dict[str, Planned]:
    """The tensors of a directory in ``layout``, made of a plan in memory whose experts are stacked."""
    named: dict[str, Planned] = {}
    for name, planned in plan.items():
        match = _STACK.fullmatch(name)
        parts = _unstacked(match[1], match[2], planned) if match and layout == "released" else {name: planned}
        named |= {name_on_disk(part, layout): made for part, made in parts.items()}
    return named


def _stacked(names: list[str], tensors: Mapping[str, TensorInfo], count: int, hint: str) -> Planned:
    first = tensors[names[0]]
    other = [name for name in names if tensors[name] != first]
    if other:
        raise ModelLoadError(
            f"weights of another shape or dtype than {names[0]}: {', '.join(other[:5])}", hint=hint
        )
    rows, *columns = first.shape or (1,)  # a scalar is refused later, by the stack's shape
    shape = (count, rows * len(names) // count, *columns)
    return Planned(TensorInfo(shape, first.dtype), tuple(map(Piece, names)))


def _unstacked(prefix: str, stack: str, planned: Planned) -> dict[str, Planned]:
    (whole,) = planned.pieces
    E, rows, columns = planned.info.shape
    parts = _STACKS[stack]
    height = rows // len(parts)
    info = TensorInfo((height, columns), planned.info.dtype)
    return {
        f"{prefix}.{i}.{part}.weight": Planned(
            info, (Piece(whole.name, (i, slice(k * height, (k + 1) * height))),)
        )
        for i in range(E)
        for k, part in enumerate(parts)
    }


def _with_prefix(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
