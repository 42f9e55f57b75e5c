"""Calibrate and judge on your own pairs: a list in a file, or batches of tensors from any loader.

python examples/custom_data.py --folder mine
"""

import argparse
from pathlib import Path

import torch

import vlprune
from vlprune.data import scenes


def write_pairs(folder: Path, count: int) -> Path:
    """Write photographs and captions as you may have them: here the drawn scenes, as PNG files and a list."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(scenes.split_scenes("train", count)):
        scenes.draw(scene).save(folder / f"{number}.png")
        lines.append(f"{number}.png\t{scenes.caption(scene)}\n")
    listing = folder / "pairs.tsv"
    listing.write_text("".join(lines))
    return listing


def main() -> None:
    """Prune once by a file of pairs, once by batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the pairs are written")
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()

    listing = write_pairs(args.folder, args.count)
    loaded = vlprune.load_model("demo")
    data = vlprune.load_data(f"pairs:{listing}", loaded.preprocess, loaded.tokenizer)
    print(vlprune.prune_(loaded.model, vlprune.WandaConfig(pattern="2:4"), data))
    print(vlprune.evaluate(loaded.model, data))

    # what a DataLoader yields will do as well: tensors of images [B, 3, H, W] and of token ids [B, L]
    pairs = [(loaded.preprocess(scenes.draw(s)), scenes.caption(s)) for s in scenes.split_scenes("train", 8)]
    images = torch.stack([image for image, _ in pairs])
    texts = loaded.tokenizer([caption for _, caption in pairs])
    again = vlprune.load_model("demo").model
    config = vlprune.WandaConfig(pattern="2:4", token_weight="attention_mask")  # padding counts nothing
    print(vlprune.prune_(again, config, [(images, texts)]))


if __name__ == "__main__":
    main()
