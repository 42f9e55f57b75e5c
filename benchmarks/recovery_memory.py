"""Memory and time of a SparseLoRA step on ViT-L-14 blocks: `python -m benchmarks.recovery_memory`.

Three ways to train ``(W + s B A) * M``: the formula written out (PyTorch keeps the effective weight of every
layer until the backward pass), vlprune's layer (which computes it again), and for comparison plain LoRA,
which has no mask. "checkpointing" is vlprune's layer in blocks that compute their activations again. Peaks
are those of the resident set of a process of its own, above what the model takes; "held" are the bytes that a
forward pass leaves for the backward pass, weights and masks not counted. "update" times by themselves what a
step does with weights alone: makes the effective ones of a block (twice a step), and takes their gradients to
those of the adapters; beside that, the same by PyTorch's operators, and a copy of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlprune import measure, ops
from vlprune.nn import PackedAttention
from vlprune.recovery import SparseLoRAConfig, SparseLoRALinear, add_sparse_lora_

WIDTH, TOKENS = 1024, 257


class Formula(SparseLoRALinear):
    """The definition, left to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight + self.scale * (self.lora_B @ self.lora_A)) * self.keep
        return F.linear(x, weight, self.bias)


class PlainLoRA(SparseLoRALinear):
    """LoRA beside a weight that was pruned beforehand."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + (x @ self.lora_A.T) @ self.lora_B.T * self.scale


CHECKPOINTING = "checkpointing"
CLASSES = {
    "formula": Formula,
    "vlprune": SparseLoRALinear,
    "plain LoRA": PlainLoRA,
    CHECKPOINTING: SparseLoRALinear,
}


def blocks(kind: str, count: int, rank: int) -> nn.Sequential:
    """Random ViT-L-14 image blocks, half of their weights masked, with adapters that are not zero."""
    from open_clip.transformer import ResidualAttentionBlock

    torch.manual_seed(0)
    model = nn.Sequential(*(ResidualAttentionBlock(WIDTH, WIDTH // 64, mlp_ratio=4.0) for _ in range(count)))
    for block in model:
        block.attn = PackedAttention.from_attention(block.attn)
    masks = {
        f"{name}.weight": torch.rand_like(m.weight) < 0.5
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    }
    add_sparse_lora_(model, SparseLoRAConfig(rank=rank), masks)
    for module in model.modules():
        if isinstance(module, SparseLoRALinear):
            nn.init.normal_(module.lora_B, std=0.01)
            module.__class__ = CLASSES[kind]
            if kind == "plain LoRA":
                module.weight.data.mul_(module.keep)
                module.keep = module.keep[:0]
    if kind == CHECKPOINTING:
        for block in model:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def step(model: nn.Module, x: Tensor) -> Tensor:
    """One forward and backward pass; the gradients of the adapters, in one row."""
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def held_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of all storages that a forward pass keeps, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}
    kept = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(t)  # or its address could be taken by another
        return t

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        for t in given:
            pack(t)

    # a checkpoint keeps the inputs of its block, of which autograd knows nothing
    hooks = [block.register_forward_pre_hook(keep) for block in model]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(found.values())


def peak_bytes(kind: str, count: int, batch: int, rank: int) -> dict[str, int]:
    """Measure in this process, which must be a fresh one."""
    model, x = blocks(kind, count, rank), torch.randn(batch, TOKENS, WIDTH, requires_grad=True)
    # the first products set up buffers that stay
    step(model, x[:1].detach().requires_grad_())
    x.grad = None
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(model, x)
    peak = _status("VmHWM") - before
    own = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return {"peak": peak, "model": own, "held": held_bytes(model, x)}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def bench_memory(kinds: Sequence[str], count: int, batch: int, rank: int) -> list[dict[str, Any]]:
    """Bytes of kinds, each in a process of its own."""
    rows = []
    # freed blocks go back to the system at once, so that what is resident is what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for kind in kinds:
        arguments = [kind, str(count), str(batch), str(rank)]
        command = [sys.executable, "-m", "benchmarks.recovery_memory", "--one", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        rows.append({"blocks": count, "batch": batch, "kind": kind, **json.loads(done.stdout)})
    return rows


def bench_time(batch: int, rank: int, rounds: int) -> dict[str, measure.Timing]:
    """Seconds of a step on one block, interleaved, after the gradients have been held against each other."""
    models = {kind: blocks(kind, 1, rank) for kind in CLASSES}
    x = torch.randn(batch, TOKENS, WIDTH, requires_grad=True)
    reference = step(models["formula"].double(), x.double())
    models["formula"].float()
    for kind in ("formula", "vlprune", CHECKPOINTING):
        measure.check_close(kind, step(models[kind], x), reference)
    steps = {kind: partial(step, model, x) for kind, model in models.items()}
    return measure.compare(steps, warmup=1, rounds=rounds, max_seconds=60)


def torch_update(weight: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor) -> Tensor:
    """The effective weight by PyTorch's operators."""
    return torch.addmm(weight, b, a, alpha=scale).mul_(keep)


def torch_gradients(grad: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The adapters' gradients by PyTorch's operators, of a gradient that they may mask in place."""
    masked = grad.mul_(keep)
    return (b * scale).T @ masked, masked @ (a * scale).T


@torch.no_grad()
def bench_update(rank: int, rounds: int) -> dict[str, measure.Timing]:
    """Seconds for the four matrices of a block, interleaved, after results have been held against float64."""
    layers = [m for m in blocks("vlprune", 1, rank).modules() if isinstance(m, SparseLoRALinear)]
    calls = [(m.weight, m.lora_A, m.lora_B, m.scale, m.keep) for m in layers]
    grads = [torch.randn_like(m.weight) for m in layers]
    copies = [torch.empty_like(m.weight) for m in layers]
    gradients = torch.ops.vlprune._masked_update_backward.default
    for grad, (weight, a, b, scale, keep) in zip(grads, calls, strict=True):
        wide = [t.double() for t in (a, b)]
        exact = (weight.double() + scale * wide[1] @ wide[0]) * keep
        of_a, of_b = gradients(grad.double(), *wide, scale, keep)
        for update, backward in ((ops.masked_update, gradients), (torch_update, torch_gradients)):
            measure.check_close("update", update(weight, a, b, scale, keep), exact)
            for found, expected in zip(backward(grad.clone(), a, b, scale, keep), (of_a, of_b), strict=True):
                measure.check_close("gradients", found, expected)

    def copy() -> None:
        for to, (weight, *_) in zip(copies, calls, strict=True):
            to.copy_(weight)

    def all_of(update: Callable[..., Any], of: Sequence[Tensor]) -> None:
        for first, call in zip(of, calls, strict=True):
            update(first, *call[1:])

    weights = [call[0] for call in calls]
    candidates = {
        "copy": copy,
        "update": partial(all_of, ops.masked_update, weights),
        "update, torch": partial(all_of, torch_update, weights),
        "gradients": partial(all_of, gradients, grads),
        "gradients, torch": partial(all_of, torch_gradients, grads),
    }
    return measure.compare(candidates, warmup=2, rounds=rounds, max_seconds=20)


def _print(rows: Iterable[dict[str, Any]]) -> None:
    known = {(row["blocks"], row["batch"], row["kind"]): row for row in rows}
    for (count, batch, kind), row in known.items():
        peak, held = row["peak"] / 2**20, row["held"] / 2**20
        text = f"batch {batch} {kind:>13}: peak {peak:7.1f} MiB, held {held:7.1f} MiB"
        if other := known.get((count, batch, "formula")):
            whole = 1 - (row["peak"] + row["model"]) / (other["peak"] + other["model"])
            text += f", {1 - row['peak'] / other['peak']:.1%} less ({whole:.1%} with the model)"
        print(text)


def _merged(rows: list[dict[str, Any]], new: list[dict[str, Any]], *key: str) -> list[dict[str, Any]]:
    """Rows with the new ones in the place of those of the same key, or behind."""
    found = {tuple(row[name] for name in key): row for row in [*rows, *new]}
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4, help="for memory; time is that of one")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8], help="images; none: no memory")
    parser.add_argument("--kinds", nargs="+", choices=CLASSES, default=list(CLASSES), help="for memory")
    parser.add_argument("--time-batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0: no timing")
    parser.add_argument("--out", type=Path, help="write JSON here, beside what another part wrote")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, *numbers = arguments.one
        print(json.dumps(peak_bytes(kind, *map(int, numbers))))
        return
    result: dict[str, Any] = {"machine": measure.machine_info(), "rank": arguments.rank}
    if arguments.out and arguments.out.exists():
        result = json.loads(arguments.out.read_text()) | result
    for batch in arguments.batches:
        new = bench_memory(arguments.kinds, arguments.blocks, batch, arguments.rank)
        result["memory"] = _merged(result.get("memory", []), new, "blocks", "batch", "kind")
    _print(result.get("memory", []))
    if arguments.rounds:
        times = bench_time(arguments.time_batch, arguments.rank, arguments.rounds)
        for kind, timing in times.items():
            ratio = timing.median / times["formula"].median
            print(f"one block, batch {arguments.time_batch} {kind:>13}: {timing.median:.3f} s ({ratio:.3f})")
        new = {"batch": arguments.time_batch, **{kind: timing.to_dict() for kind, timing in times.items()}}
        result["time"] = _merged(result.get("time", []), [new], "batch")
        alone = bench_update(arguments.rank, 5 * arguments.rounds)
        for name, timing in alone.items():
            ratio = timing.median / alone["copy"].median
            print(f"a block's {name:>16}: {1e3 * timing.median:.2f} ms ({ratio:.2f} of the copy)")
        result["update"] = {name: timing.to_dict() for name, timing in alone.items()}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
