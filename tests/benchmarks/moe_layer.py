"""Time forward + backward of the routed experts, or of the whole dual-path layer, against named peers.

``python -m tests.benchmarks.moe_layer`` prints one row per width and number of tokens: the median time of a
dense chain of as many FLOPs and, divided by it, those of ours, of a loop over experts and of transformers'
Qwen2-MoE block. All hold the same weights, get the same routing and take turns within each repetition, so
that drift of the machine meets all alike; outputs are compared before anything is timed. A quick look (half a
minute): ``--widths tiny --seconds 1``.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeMLP, Qwen2MoeSparseMoeBlock
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2MLP

from echoray.model import EchoVLMTextConfig
from echoray.model.dual_path import DualPathMLP, Experts

E, K = 4, 2
BACKENDS = ("eager", "batched_mm", "grouped_mm")
MIN_REPETITIONS, MAX_REPETITIONS = 3, 400
BATCHED_MM_BYTES = 2 << 30  # it copies K experts' weights for every token


class Widths(NamedTuple):
    """Hidden size, and the widths of the FFN, of one expert and of the shared expert."""

    hidden: int
    ffn: int
    expert: int
    shared: int


WIDTHS = {
    "tiny": Widths(192, 576, 128, 256),  # the embedded base
    "3b": Widths(1536, 8960, 768, 1536),  # Qwen2-VL-2B
    "11b": Widths(3584, 18944, 1408, 5632),  # Qwen2-VL-7B
}


@dataclass(frozen=True)
class Contender:
    """Something to be timed, and the tensors whose gradients it computes."""

    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]


class LoopExperts(nn.Module):
    """The usual loop: a list of MLPs, a one-hot mask, and index_add_ of each expert's rows."""

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size
        self.experts = nn.ModuleList(Qwen2MoeMLP(config, intermediate_size=width) for _ in range(E))

    def copy_from(self, gate_up_EFH: Tensor, down_EHI: Tensor) -> None:
        """Take over stacked weights."""
        for expert, gate_up_FH, down_HI in zip(self.experts, gate_up_EFH, down_EHI, strict=True):
            gate_IH, up_IH = gate_up_FH.chunk(2)
            expert.gate_proj.weight.copy_(gate_IH)
            expert.up_proj.weight.copy_(up_IH)
            expert.down_proj.weight.copy_(down_HI)

    def forward(self, x_NH: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """(N, H)."""
        out_NH = torch.zeros_like(x_NH)
        mask_EKN = nn.functional.one_hot(index_NK, E).permute(2, 1, 0)
        for expert, mask_KN in zip(self.experts, mask_EKN, strict=True):
            slot, token = torch.where(mask_KN)
            y = expert(x_NH[token]) * weight_NK[token, slot, None]
            out_NH.index_add_(0, token, y.to(x_NH.dtype))
        return out_NH


class Peers(NamedTuple):
    """Our layer and what it is compared with; equal weights where they have the same parts."""

    ours: DualPathMLP
    loop: LoopExperts
    block: Qwen2MoeSparseMoeBlock
    dense: Qwen2MoeMLP  # as many FLOPs as the K experts of each token


def build(widths: Widths, dtype: torch.dtype) -> Peers:
    """Random layers; the FFN is frozen, as in training."""
    shape = {
        "hidden_size": widths.hidden, "intermediate_size": widths.ffn,
        "num_experts": E, "num_experts_per_tok": K, "norm_topk_prob": True,
        "moe_intermediate_size": widths.expert, "shared_expert_intermediate_size": widths.shared,
    }  # fmt: skip
    theirs = Qwen2MoeConfig(**shape)
    theirs._experts_implementation = "grouped_mm"  # what transformers takes for this model when not asked
    dense = Qwen2MoeMLP(theirs, intermediate_size=K * widths.expert)
    peers = Peers(
        DualPathMLP(EchoVLMTextConfig(**shape)), LoopExperts(theirs), Qwen2MoeSparseMoeBlock(theirs), dense
    )
    ours, loop, block, _ = (module.to(dtype) for module in peers)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.normal_(0, widths.hidden**-0.5)
        loop.copy_from(ours.experts.gate_up_proj, ours.experts.down_proj)
        block.experts.load_state_dict(ours.experts.state_dict())
        block.shared_expert.load_state_dict(ours.shared_expert.state_dict())
        block.gate.weight.copy_(ours.router.weight)
    for frozen in (ours.gate_proj, ours.up_proj, ours.down_proj):
        frozen.requires_grad_(False)
    return peers


def trained(*modules: nn.Module) -> list[Tensor]:
    """The weights that get a gradient."""
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


def with_backend(experts: Experts, name: str) -> Experts:
    """The same experts, computed with that implementation."""
    twin = copy.copy(experts)
    twin.config = copy.copy(experts.config)
    twin.config._experts_implementation = name
    return twin


def with_experts(layer: DualPathMLP, experts: nn.Module) -> DualPathMLP:
    """The same layer around other experts."""
    twin = copy.copy(layer)
    twin._modules = {**layer._modules, "experts": experts}
    return twin


def expert_contenders(peers: Peers, x_NH: Tensor, backends: Sequence[str]) -> dict[str, Contender]:
    """The routed experts alone, with one routing for all."""
    with torch.no_grad():
        index_NK, weight_NK = peers.ours.router(x_NH)
    weight_NK.requires_grad_()
    inputs = (x_NH, index_NK, weight_NK)
    leaves = [x_NH, weight_NK]
    experts = peers.ours.experts
    contenders = {
        "dense": Contender(partial(peers.dense, x_NH), [x_NH, *trained(peers.dense)]),
        "loop": Contender(partial(peers.loop, *inputs), leaves + trained(peers.loop)),
        "qwen2-moe": Contender(partial(peers.block.experts, *inputs), leaves + trained(peers.block.experts)),
    }
    for name in ("auto", *backends):
        run = partial(with_backend(experts, name), *inputs)
        contenders[name] = Contender(run, leaves + trained(experts))
    return contenders


def layer_contenders(peers: Peers, x_NH: Tensor, backends: Sequence[str]) -> dict[str, Contender]:
    """The whole layer. Qwen2-MoE's block and the dense chain get our frozen FFN beside them."""
    ours, x_1NH = peers.ours, x_NH[None]
    looped = with_experts(ours, peers.loop)
    ffn = partial(Qwen2MLP.forward, ours, x_1NH)
    shared = ours.shared_expert
    contenders = {
        "dense": Contender(
            lambda: ffn() + shared(x_1NH) + peers.dense(x_1NH), [x_NH, *trained(shared, peers.dense)]
        ),
        "loop": Contender(partial(looped, x_1NH), [x_NH, *trained(looped)]),
        "qwen2-moe": Contender(lambda: ffn() + peers.block(x_1NH), [x_NH, *trained(peers.block)]),
    }
    for name in ("auto", *backends):
        run = partial(with_experts(ours, with_backend(ours.experts, name)), x_1NH)
        contenders[name] = Contender(run, [x_NH, *trained(ours)])
    return contenders


def step_s(contender: Contender, grad: Tensor) -> float:
    """Seconds of one forward and backward; gradients start as None, as after zero_grad()."""
    for leaf in contender.leaves:
        leaf.grad = None
    began = time.perf_counter()
    y = contender.forward()
    y.backward(grad.view_as(y))
    return time.perf_counter() - began


def check(contenders: dict[str, Contender]) -> None:
    """Fail if two that should compute the same do not."""
    with torch.no_grad():
        expected = contenders["loop"].forward()
        tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
        for name in contenders.keys() - {"dense", "qwen2-moe"}:
            torch.testing.assert_close(contenders[name].forward(), expected, rtol=tolerance, atol=tolerance)


def medians_s(
    contenders: dict[str, Contender], grad: Tensor, budget_s: float
) -> tuple[dict[str, float], int]:
    """The median time of each, and how many repetitions fitted the budget; they take turns in each."""
    warm_s = sum(step_s(one, grad) for one in contenders.values())
    wanted = max(MIN_REPETITIONS, min(MAX_REPETITIONS, int(budget_s / warm_s)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(wanted):
        first = turn % len(names)  # nobody always follows the same one
        for name in names[first:] + names[:first]:
            times[name].append(step_s(contenders[name], grad))
    for contender in contenders.values():
        for leaf in contender.leaves:
            leaf.grad = None
    return {name: statistics.median(values) for name, values in times.items()}, wanted


def needed_bytes(widths: Widths, tokens: int, part: str, itemsize: int) -> int:
    """About what a row takes: weights and gradients of every contender, and the activations of one."""
    routed = 3 * E * widths.expert * widths.hidden
    weights = routed * 7 + 3 * widths.hidden * (widths.ffn + 4 * widths.shared)
    activations = tokens * (4 * K * (widths.expert + widths.hidden))
    if part == "layer":
        activations += tokens * 5 * (widths.ffn + widths.shared)
    return (weights + activations) * itemsize


def usable(backends: Sequence[str], widths: Widths, tokens: int, itemsize: int) -> list[str]:
    """Those that fit; batched_mm copies weights per token."""
    copied_bytes = 3 * K * tokens * widths.expert * widths.hidden * itemsize
    return [name for name in backends if name != "batched_mm" or copied_bytes <= BATCHED_MM_BYTES]


def row(peers: Peers, widths: Widths, tokens: int, args: argparse.Namespace) -> str:
    """Measure one row of the table."""
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(tokens)
    x_NH = torch.randn(tokens, widths.hidden, generator=generator).to(dtype).requires_grad_()
    grad_NH = torch.randn(tokens, widths.hidden, generator=generator).to(dtype)
    make = expert_contenders if args.part == "experts" else layer_contenders
    contenders = make(peers, x_NH, usable(args.backends, widths, tokens, dtype.itemsize))
    check(contenders)
    found_s, repetitions = medians_s(contenders, grad_NH, args.seconds)
    if args.profile:
        for name in ("auto", "dense"):
            print_profile(name, contenders[name], grad_NH)
    dense_s = found_s["dense"]
    shown = ("auto", "loop", "qwen2-moe", *args.backends)
    ratios = [f"{found_s[name] / dense_s:.2f}" if name in found_s else "-" for name in shown]
    return " | ".join([f"{tokens}", f"{dense_s * 1e3:.2f} ms", *ratios, f"{repetitions}"])


def print_profile(name: str, contender: Contender, grad: Tensor) -> None:
    """Where the time of five steps goes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step_s(contender, grad)
    print(f"\n{name}\n{profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=14)}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("experts", "layer"), default="experts")
    parser.add_argument("--widths", nargs="+", choices=tuple(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 64, 128, 256, 1024, 4096])
    parser.add_argument(
        "--backends", nargs="*", choices=BACKENDS, default=[], help="time these of ours as well"
    )
    parser.add_argument("--seconds", type=float, default=10, help="per row; at least 3 repetitions are made")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="also profile ours and the dense chain")
    return parser.parse_args(argv)


def main() -> None:
    """Print the machine and the table."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    malloc = "glibc's default" if "MALLOC_MMAP_MAX_" not in os.environ else "MALLOC_MMAP_MAX_ set"
    print(
        f"{datetime.date.today()}, {platform.machine()}, {psutil.cpu_count()} cores, no GPU used; torch "
        f"{torch.__version__}, {args.threads} threads, {args.dtype}, allocator: {malloc}\n"
        f"{args.part}, forward + backward, E={E}, K={K}; times divided by the dense chain's\n"
    )
    columns = ["width", "tokens", "dense", "ours (auto)", "loop", "Qwen2-MoE", *args.backends, "repetitions"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    itemsize = getattr(torch, args.dtype).itemsize
    for name in args.widths:
        widths = WIDTHS[name]
        if needed_bytes(widths, 0, args.part, itemsize) > psutil.virtual_memory().available:
            print(f"| {name} | skipped: too little memory for the weights |")
            continue
        peers = build(widths, getattr(torch, args.dtype))
        for tokens in args.tokens:
            # Weights are there already; gradients and activations are still to come.
            if needed_bytes(widths, tokens, args.part, itemsize) / 2 > psutil.virtual_memory().available:
                print(f"| {name} | {tokens} | skipped: too little memory |")
                continue
            print(f"| {name} | {row(peers, widths, tokens, args)} |", flush=True)
        del peers


if __name__ == "__main__":
    main()
