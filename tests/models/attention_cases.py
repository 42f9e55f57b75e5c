"""Small attention modules with weights, inputs and masks, for the tests of their stand-ins."""

import torch
from open_clip.transformer import Attention
from torch import nn

B, L, D, H = 2, 5, 24, 3
# Same arithmetic in another order: a few units in the last place of values around one.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def mha(**options):
    torch.manual_seed(2)
    module = nn.MultiheadAttention(D, H, **{"batch_first": True, **options}).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def open_clip_attention(**options):
    torch.manual_seed(2)
    module = Attention(D, H, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def x(seed=0, length=L, dim=D, batch=B):
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))


def causal(length=L):
    return torch.full((length, length), float("-inf")).triu(1)


def blocked():
    # some of each in every row: whichever of the two True means, no row is without a key
    rows = torch.arange(L)
    mask = torch.zeros(L, L, dtype=torch.bool)
    mask[rows, (rows + 1) % L] = mask[rows, (rows + 3) % L] = True
    return mask


def per_head():
    masks = torch.stack([causal() * 1.0 if i % 2 else torch.zeros(L, L) for i in range(B * H)])
    masks[:, :, 0] = 0.5
    return masks
