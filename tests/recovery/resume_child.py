"""A training for `test_resume`: `python resume_child.py OUT KIND SECONDS_PER_STEP`."""

import copy
import sys
import time

import torch
from torch import nn

import vlprune
from vlprune.recovery import (
    DistillConfig,
    RecoverConfig,
    SparseLoRAConfig,
    add_sparse_lora_,
    distill_,
    recover_,
)

STEPS = 12


class PlainAttention(nn.Module):
    """Attention of one head."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """Attention and dropout, so that a step depends on the random numbers that it draws."""

    def __init__(self, width):
        super().__init__()
        self.attn, self.drop = PlainAttention(width), nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.attn(x))


class Tower(nn.Module):
    """Two blocks over embedded pixels or words."""

    def __init__(self, embed, width):
        super().__init__()
        self.embed, self.blocks = embed, nn.Sequential(Block(width), Block(width))

    def forward(self, x):
        return self.blocks(self.embed(x)).mean(1)


class SmallClip(nn.Module):
    """What vlprune needs of a dual encoder, without open_clip, which takes seconds to import."""

    def __init__(self, width=16):
        super().__init__()
        self.visual = Tower(nn.Linear(12, width), width)
        self.text = Tower(nn.Embedding(30, width), width)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def encode_image(self, images, normalize=False):
        return nn.functional.normalize(self.visual(images.flatten(1).unflatten(1, (-1, 12))), dim=-1)

    def encode_text(self, texts, normalize=False):
        return nn.functional.normalize(self.text(texts), dim=-1)


def run(out, kind, pause=0.0):
    """Train a small pruned model, `pause` seconds a step; return the report and the model."""
    torch.manual_seed(0)
    dense = SmallClip().eval()
    student = copy.deepcopy(dense)
    vlprune.prune_(student, vlprune.MagnitudeConfig(pattern="2:4"))
    batches = [(torch.randn(4, 3, 4, 4), torch.randint(1, 30, (4, 8))) for _ in range(3)]
    dense.visual.register_forward_hook(lambda *_: time.sleep(pause))
    common = {"steps": STEPS, "learning_rate": 3e-3, "save_every": 3, "ema": 0.5}
    if kind == "distill":
        report = distill_(student, dense, batches, DistillConfig(**common), out=out, progress=False)
        return report, student
    add_sparse_lora_(dense, SparseLoRAConfig(rank=2), vlprune.masks(student))
    return recover_(dense, batches, RecoverConfig(**common), out=out, progress=False), dense


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
