"""What a tower refuses before anything is launched, and what `wanda_pack24_many` says of itself."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from vlprune.kernels.wanda_pack24 import Tower

WEIGHT, NORM = torch.ones(8, 16), torch.ones(16)
REFUSED = {
    "a transposed weight": (torch.ones(16, 8).t(), NORM, r"weights\[1\] of strides \(1, 8\)"),
    "a weight between addresses": (torch.ones(129)[1:].view(8, 16), NORM, "multiples of 16 bytes"),
    "every second norm": (WEIGHT, torch.ones(32)[::2], r"column_norms\[1\] of strides \(2,\)"),
    "norms of 16 bits": (WEIGHT, NORM.bfloat16(), "the norms float32, .*torch.bfloat16"),
}


@pytest.mark.parametrize(("weight", "norm", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_it_would_copy(weight, norm, message):
    with pytest.raises(ValueError, match=f"Tower: expected contiguous tensors .*{message}"):
        Tower([WEIGHT, weight], [NORM, norm])


def test_refuses_to_be_made_in_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"wanda_pack24_many: .* make .*Tower before, capture its pack"):
        Tower([SimpleNamespace(is_cuda=True)], [NORM])


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this PyTorch has no such tag")
def test_only_many_is_kept_out_of_graphs():
    operators = torch.ops.vlprune
    assert torch.Tag.cudagraph_unsafe in operators.wanda_pack24_many.default.tags
    assert torch.Tag.cudagraph_unsafe not in operators.wanda_pack24.default.tags
