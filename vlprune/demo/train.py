"""The script that trained the demo model: `python -m vlprune.demo.train --out DIR`.

Symmetric InfoNCE on freshly drawn scenes, AdamW, warm-up and cosine. A batch is a function of (seed, step):
a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vlprune import demo
from vlprune.data import scenes
from vlprune.demo.tokenizer import WordTokenizer, caption_words

if TYPE_CHECKING:
    from open_clip.model import CLIP

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's bound


@dataclass(frozen=True)
class TrainSettings:
    """Everything besides the model's shape that decides the weights."""

    steps: int = 1100
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    seed: int = 0
    threads: int = 1
    save_every: int = 50


class SceneBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is that step's training batch: uint8 pictures [B, 3, size, size] and token ids [B, L]."""

    def __init__(self, settings: TrainSettings, size: int, tokenizer: WordTokenizer) -> None:
        self.settings = settings
        self.size = size
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.settings.steps

    def scenes_of(self, step: int) -> list[scenes.Scene]:
        """Return the training scenes of one step, all of different content: no caption fits two pictures."""
        return scenes.split_scenes("train", self.settings.batch, self.settings.seed * 1_000_003 + step)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.scenes_of(step)
        return _pixels(batch, self.size), self.tokenizer([scenes.caption(scene) for scene in batch])


def train(out: Path, config: dict[str, Any], settings: TrainSettings, stop_after: int | None = None) -> CLIP:
    """Train, or go on training, in the folder `out`; write the shipped files there and return the model.

    `stop_after` ends this call early, at a checkpoint after that step, with the schedule of the whole run.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = WordTokenizer(caption_words(), config["text_cfg"]["context_length"])
    model = cast("CLIP", demo.build(config))
    optimizer = _adamw(model, settings)
    start, history = _resume(out / "state.pt", model, optimizer, settings)
    end = settings.steps if stop_after is None else min(stop_after, settings.steps)
    batches = SceneBatches(settings, config["preprocess_cfg"]["size"], tokenizer)
    loader = DataLoader(batches, batch_size=None, sampler=range(start, end), num_workers=1, prefetch_factor=4)
    bar = tqdm(loader, initial=start, total=settings.steps, desc="demo", unit="step", mininterval=5.0)
    for step, (pixels, tokens) in enumerate(bar, start=start):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings)
        loss = _step(model, optimizer, _normalise(pixels, config), tokens)
        history.append(round(loss, 5))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if (step + 1) % settings.save_every == 0 or step + 1 == end:
            _save_state(out / "state.pt", model, optimizer, settings, history)
            _export(out, config, settings, model, tokenizer, history)
    return model


def recall_at_1(model: CLIP, pixels: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Return the share of pictures that find their own caption first, and of captions their picture."""
    with torch.inference_mode():
        images = torch.cat([model.encode_image(part, normalize=True) for part in torch.split(pixels, 128)])
        texts = torch.cat([model.encode_text(part, normalize=True) for part in torch.split(tokens, 128)])
    scores, own = images @ texts.T, torch.arange(len(images))
    return (scores.argmax(1) == own).float().mean().item(), (scores.argmax(0) == own).float().mean().item()


def _step(model: CLIP, optimizer: torch.optim.Optimizer, images: Tensor, tokens: Tensor) -> float:
    from open_clip.loss import ClipLoss

    image_features, text_features, scale = model(images, tokens)
    loss: Tensor = ClipLoss()(image_features, text_features, scale)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
    return loss.item()


def _adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _learning_rate(step: int, settings: TrainSettings) -> float:
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def _pixels(batch: Sequence[scenes.Scene], size: int) -> Tensor:
    pictures = np.stack([np.asarray(scenes.draw(scene, size)) for scene in batch])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def _normalise(pixels: Tensor, config: dict[str, Any]) -> Tensor:
    mean, std = (torch.tensor(config["preprocess_cfg"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (pixels.float() / 255.0 - mean) / std


@lru_cache(maxsize=1)
def _test_pairs(size: int) -> tuple[list[scenes.Scene], Tensor]:
    test = scenes.split_scenes("test", 500)
    return test, _pixels(test, size)


def _lasting(settings: TrainSettings) -> dict[str, Any]:
    """Return what a checkpoint must agree on to be continued; threads and save_every may change."""
    return {k: v for k, v in asdict(settings).items() if k not in ("threads", "save_every")}


def _save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    history: list[float],
) -> None:
    state = {
        "settings": _lasting(settings),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": len(history),
        "history": history,
    }
    _replace(path, lambda partial: torch.save(state, partial))


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings
) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    if state["settings"] != _lasting(settings):
        raise ValueError(f"{path} is a checkpoint of another run: {state['settings']}; give another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["history"])


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then rename: a killed run leaves the old file or the new one, never a half."""
    partial = path.with_suffix(path.suffix + ".partial")
    write(partial)
    os.replace(partial, path)


def _export(
    out: Path,
    config: dict[str, Any],
    settings: TrainSettings,
    model: CLIP,
    tokenizer: WordTokenizer,
    history: list[float],
) -> None:
    from safetensors.torch import save_file

    test, drawn = _test_pairs(config["preprocess_cfg"]["size"])
    tr1, ir1 = recall_at_1(
        model, _normalise(drawn, config), tokenizer([scenes.caption(scene) for scene in test])
    )
    record = {
        **asdict(settings),
        "steps_done": len(history),
        "final_loss": sum(history[-50:]) / len(history[-50:]),
        "test_pairs": len(test),
        "tr1": tr1,
        "ir1": ir1,
    }
    tqdm.write(json.dumps(record))
    _replace(out / "model.safetensors", lambda path: save_file(demo.to_half(model), path))
    _replace(out / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    _replace(out / "vocab.txt", lambda path: path.write_text("\n".join(tokenizer.words) + "\n"))
    _replace(out / "training.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m vlprune.demo.train", description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, and to resume from")
    parser.add_argument("--config", type=Path, default=demo.FOLDER / "config.json", help="shape of the model")
    for name, value in asdict(TrainSettings()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    values = vars(parser.parse_args(argv))
    out, config = values.pop("out"), json.loads(values.pop("config").read_text())
    train(out, config, TrainSettings(**values))


if __name__ == "__main__":
    main()
