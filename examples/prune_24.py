"""Prune to 2:4, run the zeros through packed layers where that is faster, save, and load again.

python examples/prune_24.py --out pruned
"""

import argparse

import vlprune


def main() -> None:
    """Prune, sparsify, save, load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="demo, an open_clip name, or a folder")
    parser.add_argument("--pretrained", help="of an open_clip name")
    parser.add_argument("--calib", default="demo:train", help="what to calibrate on")
    parser.add_argument("--data", default="demo", help="what to evaluate on")
    parser.add_argument("--samples", type=int, default=128, help="calibration images")
    parser.add_argument("--out", required=True, help="folder for the pruned model")
    args = parser.parse_args()

    loaded = vlprune.load_model(args.model, args.pretrained)
    calib = vlprune.load_data(args.calib, loaded.preprocess, loaded.tokenizer)
    data = vlprune.load_data(args.data, loaded.preprocess, loaded.tokenizer)

    print("dense:", vlprune.evaluate(loaded.model, data))
    config = vlprune.SparseGPTConfig(pattern="2:4", samples=args.samples)
    print(vlprune.prune_(loaded.model, config, calib))
    print(vlprune.sparsify_(loaded.model))  # what is not faster here stays dense, and is named
    vlprune.save_pretrained(loaded.model, args.out)

    print("from the folder alone:", vlprune.evaluate(vlprune.from_pretrained(args.out), data))


if __name__ == "__main__":
    main()
