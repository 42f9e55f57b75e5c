"""Take out heads, neurons and layers until the image tower is so many times as fast on this machine.

python examples/target_speedup.py --speedup 1.5 --out smaller
"""

import argparse

import vlprune


def main() -> None:
    """Choose by errors and measured times, take out, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speedup", type=float, default=1.5, help="of the image tower")
    parser.add_argument("--calib", default="demo:train", help="what modules are judged on")
    parser.add_argument("--data", default="demo", help="what to evaluate on")
    parser.add_argument("--samples", type=int, default=256, help="images that modules are judged on")
    parser.add_argument("--out", required=True, help="folder for the smaller model")
    args = parser.parse_args()

    loaded = vlprune.load_model("demo")
    calib = vlprune.load_data(args.calib, loaded.preprocess, loaded.tokenizer)
    data = vlprune.load_data(args.data, loaded.preprocess, loaded.tokenizer)

    config = vlprune.StructuredConfig(target_speedup=args.speedup, tower="visual", samples=args.samples)
    print(vlprune.compact_(loaded.model, config, calib))
    print(vlprune.evaluate(loaded.model, data))
    vlprune.save_pretrained(loaded.model, args.out)


if __name__ == "__main__":
    main()
