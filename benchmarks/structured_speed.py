"""Speed of a tower without half of its heads and neurons, and of the same pruned to 2:4, beside dense torch.

python benchmarks/structured_speed.py --out FILE [--model ViT-B-32] [--batch 8] [--threads 2]

Structure alone should bring as much as it takes: the ratio of FLOPs. Every layer of the image tower loses
the same share, by number: what goes changes no cost, and neither do the weights, which are random. Dense is
the model as open_clip has it, with PyTorch's fused attention layers. The tower made smaller must give what
the masked one gives, the packed one what dense layers with the same zeros give; then all are timed in turn.

Around packed layers `sparsify_` also leaves out work that no embedding needs (`vlprune.nn.blocks`: the last
block for the class token alone, the patch embedding as one product where that is faster, residuals added in
place). So that nobody takes this for sparsity, "dense_fused" is the dense tower with it, and "sparse_plain"
the packed one without. "dense_onednn" has oneDNN's products besides, where there are, and `head_attention`:
PyTorch's products are MKL's in float32, which on some processors leaves half of them unused.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlprune import MagnitudeConfig, measure, prune_, sparsify_, split_attention_
from vlprune.bench.onednn import has_onednn, onednn_
from vlprune.files import write_json
from vlprune.models import view
from vlprune.models.parts import block_parts
from vlprune.nn.blocks import fuse_, unfuse_
from vlprune.structured import compact_, mask_modules


def evenly(model: nn.Module, share: float) -> dict[str, Any]:
    """Keep lists of this share of every image layer's heads and neurons, spread over all of them."""
    lists: dict[str, dict[int, list[int]]] = {"heads": {}, "neurons": {}}
    for block in view(model).towers["visual"].blocks:
        parts = block_parts(block)
        assert parts.attention
        assert parts.mlp
        for kind, total in (("heads", parts.attention.num_heads), ("neurons", parts.mlp.neurons)):
            kept = round(share * total)
            lists[kind][block.index] = [i * total // kept for i in range(kept)]
    return {"visual": lists}


@torch.inference_mode()
def embed(model: Any, images: Tensor) -> Tensor:
    """The image tower."""
    embeddings: Tensor = model.encode_image(images)
    return embeddings


def flops(model: Any, images: Tensor) -> int:
    """Of matrix products, with attention in operators that the counter knows."""
    counted = copy.deepcopy(model)
    split_attention_(counted)
    return measure.flops_of(lambda: embed(counted, images))[0]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build, check, and time all forms in turn."""
    import open_clip

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dense: Any = open_clip.create_model(args.model).eval()
    size = dense.visual.image_size
    images = torch.randn(args.batch, 3, *((size, size) if isinstance(size, int) else size))
    kept = evenly(dense, args.keep)
    compact = copy.deepcopy(dense)
    compact_(compact, kept)
    sparse = copy.deepcopy(compact)
    prune_(sparse, MagnitudeConfig(pattern="2:4", targets=("visual",)))
    zeros = copy.deepcopy(sparse)
    report = sparsify_(sparse, example=images, only_if_faster=not args.pack_all)
    with mask_modules(dense, kept):
        error = measure.check_close("compact", embed(compact, images), embed(dense, images))
    errors = {"compact": error}
    fused, plain = copy.deepcopy(dense), copy.deepcopy(sparse)
    fuse_(fused, dense=True)
    unfuse_(plain)
    forms = {"dense": dense, "dense_fused": fused}
    if has_onednn(torch.float32, images.device):
        forms["dense_onednn"] = copy.deepcopy(dense)
        onednn_(forms["dense_onednn"])
        fuse_(forms["dense_onednn"], dense=True)
    for name in [name for name in forms if name != "dense"]:
        errors[name] = measure.check_close(name, embed(forms[name], images), embed(dense, images))
    forms |= {"compact": compact, "sparse_plain": plain, "sparse": sparse}
    for name in ("sparse", "sparse_plain"):
        errors[name] = measure.check_close(name, embed(forms[name], images), embed(zeros, images))
    operations = {name: flops(form, images) for name, form in (("dense", dense), ("compact", compact))}
    times = measure.compare(
        {name: partial(embed, form, images) for name, form in forms.items()},
        rounds=args.rounds,
        max_seconds=args.seconds,
    )
    ratio = operations["dense"] / operations["compact"]
    faster = {name: times["dense"].median / times[name].median for name in forms if name != "dense"}
    return {
        "format": "vlprune-structured-speed",
        "model": args.model,
        "tower": "visual",
        "dtype": "float32",
        "batch": args.batch,
        "keep": args.keep,
        "errors": errors,
        "flops": {**operations, "ratio": ratio},
        "packed_layers": report.packed,
        "times": {name: timing.to_dict() for name, timing in times.items()},
        "speedup": faster,
        "of_flop_ratio": faster["compact"] / ratio,
        "machine": measure.machine_info(),
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-32", help="any open_clip model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.5, help="share of heads and of neurons")
    parser.add_argument("--pack-all", action="store_true", help="every 2:4 layer, unmeasured")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all rounds at most")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    row = run(args)
    write_json(args.out, row)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
