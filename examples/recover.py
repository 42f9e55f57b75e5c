"""Win accuracy back with SparseLoRA: adapters under the masks, trained against the model's own dense weights.

python examples/recover.py --steps 300 --out recovered
torchrun --nproc-per-node 2 examples/recover.py --steps 300 --out recovered
"""

import argparse

import torch

import vlprune
from vlprune.distributed import is_first, under_torchrun


def main() -> None:
    """Prune, recover, merge; the zeros stay those that pruning made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--calib", default="demo:train", help="what to calibrate and to train on")
    parser.add_argument("--data", default="demo", help="what to evaluate on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", required=True, help="folder for checkpoints: a killed run continues")
    args = parser.parse_args()
    with under_torchrun("cpu"):
        recover(args)


def recover(args: argparse.Namespace) -> None:
    """Every rank makes the same calls, shares the work, and has the same model in the end."""
    loaded = vlprune.load_model("demo")
    model = loaded.model
    calib = vlprune.load_data(args.calib, loaded.preprocess, loaded.tokenizer)
    data = vlprune.load_data(args.data, loaded.preprocess, loaded.tokenizer)

    dense = {name: value.clone() for name, value in model.state_dict().items()}
    config = vlprune.WandaConfig(pattern="unstructured", sparsity=args.sparsity)
    vlprune.prune_(model, config, calib)
    keep = vlprune.masks(model)
    before = vlprune.evaluate(model, data)

    model.load_state_dict(dense)  # under the masks lie the dense weights, which are the teacher
    vlprune.add_sparse_lora_(model, vlprune.SparseLoRAConfig(rank=8), keep)
    training = vlprune.RecoverConfig(steps=args.steps, batch_size=args.batch_size, learning_rate=1e-3)
    report = vlprune.recover_(model, calib, training, out=args.out)
    vlprune.merge_sparse_lora_(model)
    after, zeros = vlprune.evaluate(model, data), vlprune.masks(model)
    if is_first():
        print(f"pruned: {before}\n{report}\nrecovered: {after}")
        print("the zeros are the masks':", all(torch.equal(zeros[name], mask) for name, mask in keep.items()))


if __name__ == "__main__":
    main()
