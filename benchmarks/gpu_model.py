"""ViT-L/14's image tower on a CUDA device: 2:4 by vlprune against dense, batches and one image alone.

    python -m benchmarks.gpu_model [--batches 64 128 256] [--out benchmarks/results/<gpu>/model.json]

Both towers are open_clip's, with the same 2:4 weights in bfloat16, one of them as dense tensors, and run
under torch.compile, as a user's would; one image alone as a replayed CUDA graph. What is gained is that of
the packed layers, of `head_attention` and of the fused blocks together. Features are compared with those of
the dense tower in float32 before anything is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vlprune
from benchmarks.gpu_common import Report, graphed, needs_gpu, parser
from vlprune import measure

BATCHES = (64, 128, 256)
ROUNDS = 20


def main() -> None:
    """Measure, write."""
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options.add_argument("--quick", action="store_true", help="one batch, and one image compiled")
    args = options.parse_args()
    import open_clip

    needs_gpu("gpu_model")
    report = Report("model", args.out)
    torch.manual_seed(0)
    exact = open_clip.create_model("ViT-L-14").cuda().eval()
    vlprune.prune_(exact, vlprune.MagnitudeConfig())
    dense = copy.deepcopy(exact).bfloat16()
    for batch in args.batches[:1] if args.quick else args.batches:
        report.attempt(
            f"ViT-L/14, {batch} images, compiled", lambda batch=batch: compiled(exact, dense, batch)
        )
    report.attempt(
        "ViT-L/14, 1 image, compiled, in a CUDA graph", lambda: compiled(exact, dense, 1, graph=True)
    )
    if not args.quick:
        report.attempt("ViT-L/14, 1 image, in a CUDA graph", lambda: eager(exact, dense, 1))
    report.finish()


@torch.no_grad()
def compiled(exact: nn.Module, dense: nn.Module, batch: int, *, graph: bool = False) -> dict[str, Any]:
    """Both towers compiled."""
    torch._dynamo.reset()
    return compared(
        exact, dense, batch, lambda model: torch.compile(model.encode_image, fullgraph=True), graph
    )


@torch.no_grad()
def eager(exact: nn.Module, dense: nn.Module, batch: int) -> dict[str, Any]:
    """Both as they are, in a graph."""
    return compared(exact, dense, batch, lambda model: model.encode_image, True)


def compared(
    exact: nn.Module,
    dense: nn.Module,
    batch: int,
    made: Callable[[nn.Module], Callable[[Tensor], Tensor]],
    graph: bool,
) -> dict[str, Any]:
    """Pack, compare the features, time."""
    images = torch.randn(batch, 3, *exact.visual.image_size, device="cuda")
    half = images.bfloat16()
    packed = copy.deepcopy(dense)
    report = vlprune.sparsify_(packed, example=half)
    calls = {"vlprune": made(packed), "dense": made(dense)}
    right = exact.encode_image(images[:8])
    peer = dense.encode_image(half[:8])
    error = measure.check_close("features", calls["vlprune"](half)[:8], right, peer)
    candidates: dict[str, Callable[[], object]] = {
        name: lambda call=call: call(half)  # type: ignore[misc]
        for name, call in calls.items()
    }
    if graph:
        candidates = {name: graphed([call]) for name, call in candidates.items()}
    times = measure.compare(candidates, device="cuda", rounds=ROUNDS, cold=graph)
    mine = times["vlprune"].median
    return {
        "milliseconds": round(mine * 1e3, 3),
        "images/s": round(batch / mine, 1),
        "dense times as long": round(times["dense"].median / mine, 3),
        "packed": report.packed,
        "largest error": round(error, 4),
        "layers": [
            layer
            for layer in report.to_dict()["layers"]
            if layer["name"].startswith("visual.transformer.resblocks.0.")
        ],
        "times": {name: timing.to_dict() for name, timing in times.items()},
    }


if __name__ == "__main__":
    main()
