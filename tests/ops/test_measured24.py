"""What linear24 measures on a GPU and then chooses, on CPU tensors with `fake_cuda` instead of a GPU."""

import pytest
import torch

from vlprune import ops
from vlprune.ops import gpu
from vlprune.ops.cuda24 import chooser, entry, measure

from . import fake_cuda
from .cases import normal, packed
from .fake_cuda import check, pretend_times


def test_the_fastest_runs_and_is_measured_once(kernels, monkeypatch):
    timed = pretend_times(monkeypatch, sm80_128x128=1.0, sm90_64x32=2.0)
    values, meta = packed(24, 48, torch.bfloat16)
    for _ in range(3):
        check(normal(50, 48, dtype=torch.bfloat16), values, meta)
    names = [
        f"{arch}, config {config}"
        for arch in ("sm90", "sm80")
        for config in ("128x128", "64x32", "64x32 split")
    ]
    assert timed == [["dense", *names]]
    assert kernels["sm80"].calls[-1].config == 0


def test_another_process_remembers(kernels, monkeypatch, tmp_path):
    timed = pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    check(x, values, meta)
    (file,) = tmp_path.iterdir()
    assert file.name == "linear24-Pretended_GPU.json"
    again = fake_cuda.install(monkeypatch, tmp_path)
    check(x, values, meta)
    check(x[:49], values, meta)  # the same bucket
    assert len(timed) == 1
    assert {call.config for call in again["sm90"].calls} == {1}
    check(x[:10], values, meta)
    assert len(timed) == 2
    for content in (b"", b"{", b'{"choices": {}}', file.read_bytes().replace(b"0.1", b"9.9")):
        file.write_bytes(content)
        fake_cuda.install(monkeypatch, tmp_path)
        before = len(timed)
        check(x, values, meta)
        assert len(timed) == before + (content != file.read_bytes() or b"choices" not in content)


def test_configs_that_are_no_more_are_measured_anew(kernels, monkeypatch, tmp_path):
    timed = pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    check(x, values, meta)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace('"64x32"', '"32x64"'))
    fake_cuda.install(monkeypatch, tmp_path)
    check(x, values, meta)
    assert len(timed) == 2


def test_what_is_wrong_or_fails_is_dropped(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_128x128=1.0, sm90_64x32=2.0, sm80_128x128=3.0)
    kernels["sm90"].wrong.add(0)
    kernels["sm90"].failing.add(1)
    values, meta = packed(24, 48, torch.bfloat16)
    with pytest.warns(UserWarning, match="is not used for") as warned:
        check(normal(50, 48, dtype=torch.bfloat16), values, meta)
    said = [str(each.message) for each in warned]
    assert len(said) == 2
    assert said[0].startswith(
        "linear24: sm90, config 128x128 is not used for 50 tokens, 48 inputs and 24 outputs in bf"
    )
    assert said[0].endswith("its result is wrong")
    assert said[1].endswith("50 tokens, 48 inputs and 24 outputs: error 700")
    assert (kernels["sm80"].calls[-1].config, len(kernels["sm90"].calls)) == (0, 5)


def test_nothing_that_is_right_leaves_the_reference(kernels, monkeypatch):
    pretend_times(monkeypatch)
    for each in kernels.values():
        each.wrong.update((0, 1, 2))
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="its result is wrong"):
        check(x, values, meta)
    with (
        pytest.warns(UserWarning, match="its result is wrong"),
        pytest.raises(RuntimeError, match='no config of backend "sm80" gives the right'),
    ):
        entry.linear24(x, values, meta, backend="sm80")


def test_a_captured_call_measures_nothing(kernels, monkeypatch):
    timed = pretend_times(monkeypatch, sm80_128x128=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    monkeypatch.setattr(gpu, "capturing", lambda: True)
    with pytest.raises(
        RuntimeError, match=r"no form for the sm90 backend yet, .* call vlprune.ops.prepare24"
    ):
        entry.linear24(x, values, meta)
    monkeypatch.setattr(gpu, "capturing", lambda: False)
    entry.prepare24_cuda(values, meta)
    assert [kernels[name].reordered for name in ("sm90", "sm80")] == [[(24, 48)]] * 2
    monkeypatch.setattr(gpu, "capturing", lambda: True)
    check(x, values, meta)
    assert kernels["sm90"].calls[-1].config == 1  # the least work: 64 x 32 fills no more than it must
    assert timed == []
    monkeypatch.setattr(gpu, "capturing", lambda: False)
    check(x, values, meta)
    assert len(timed) == 1


def test_too_little_memory_to_measure(kernels, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    timed = pretend_times(monkeypatch, sm80_128x128=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    with monkeypatch.context() as full:
        # In the middle: it is no fault of the config whose turn it is.
        full.setattr(measure, "trusted", fail)
        with pytest.warns(UserWarning, match="too little memory to measure in, chosen by counting") as warned:
            check(x, values, meta)
    assert len(warned) == 1
    assert len(kernels["sm90"].calls) == 1
    # Not tried again by itself, and nothing was remembered.
    check(x, values, meta)
    assert (timed, len(kernels["sm90"].calls)) == ([], 2)
    monkeypatch.setattr(gpu, "why_none", lambda device: None)
    assert ops.tune24(50, 24, 48, bias=False).backend == "sm80"
    check(x, values, meta)
    assert kernels["sm80"].calls[-1].x == x.data_ptr()


def test_any_error_of_a_config_is_its_own(kernels, monkeypatch):
    class CompilationError(Exception):
        """Such as Triton's, which are no RuntimeError."""

    real, failed = measure.trusted, []

    def trusted(operands, run):
        if not failed:
            failed.append(1)
            raise CompilationError
        return real(operands, run)

    pretend_times(monkeypatch, sm90_64x32=1.0)
    monkeypatch.setattr(measure, "trusted", trusted)
    values, meta = packed(24, 48, torch.bfloat16)
    with pytest.warns(UserWarning, match=r"sm90, config 128x128 is not used .*: CompilationError$"):
        check(normal(50, 48, dtype=torch.bfloat16), values, meta)
    assert kernels["sm90"].calls[-1].config == 1


def test_nothing_more_is_tried_on_a_device_that_is_lost(kernels, monkeypatch):
    def wait(device):
        if len(kernels["sm90"].calls) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    pretend_times(monkeypatch)
    kernels["sm90"].failing.add(1)
    monkeypatch.setattr(gpu, "wait", wait)
    values, meta = packed(24, 48, torch.bfloat16)
    said = r"linear24: sm90, config 64x32 left cpu unusable for this process \(.*error 700\)"
    with pytest.raises(RuntimeError, match=said):
        check(normal(50, 48, dtype=torch.bfloat16), values, meta)
    assert not kernels["sm80"].calls


BAD = {
    "tokens": ((0, 24, 48), {}, "expected tokens of at least 1, got 0"),
    "outputs": ((5, 0, 48), {}, "expected out_features of at least 1, got 0"),
    "inputs": ((5, 24, 50), {}, "expected in_features divisible by 4, got 50"),
    "activation": ((5, 24, 48), {"activation": "relu"}, "expected activation None, .*got 'relu'"),
    "backend": ((5, 24, 48), {"backend": "sm100"}, "backend: expected one of auto, .*got 'sm100'"),
    "device": ((5, 24, 48), {"device": "cpu"}, "expected a CUDA device, got cpu"),
    "results": (
        (5, 24, 48, torch.int8),
        {"out_dtype": torch.float32},
        "expected out_dtype bfloat16 or float16, and only of 8 bits, got float32 of int8",
    ),
    "results of 16 bits": (
        (5, 24, 48),
        {"out_dtype": torch.float16},
        "expected out_dtype bfloat16 or float16, and only of 8 bits, got float16 of bfloat16",
    ),
}


@pytest.mark.parametrize(("sizes", "more", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_tuned_is_refused(kernels, sizes, more, message):
    with pytest.raises(ValueError, match=message):
        ops.tune24(*sizes, **more)


def test_an_error_of_the_chosen_kernel_is_told(kernels, monkeypatch):
    pretend_times(monkeypatch, sm90_64x32=1.0)
    values, meta = packed(24, 48, torch.bfloat16)
    x = normal(50, 48, dtype=torch.bfloat16)
    check(x, values, meta)
    kernels["sm90"].failing.add(1)
    with pytest.raises(
        RuntimeError, match=r"linear24: config 64x32 of the sm90 backend failed for 50 tokens, .*error 700"
    ):
        check(x, values, meta)


def test_tune_tells_what_was_measured(kernels, monkeypatch):
    timed = pretend_times(monkeypatch, dense=4.0, sm90_64x32=1.0)
    monkeypatch.setattr(gpu, "why_none", lambda device: None)
    monkeypatch.setattr(
        chooser, "why_not_form", lambda op, name, dtype, device: None if name == "sm90" else "not here"
    )
    choice = ops.tune24(50, 24, 48, activation="gelu")
    assert (choice.backend, choice.config, choice.seconds, choice.dense, choice.faster) == (
        "sm90",
        "64x32",
        1.0,
        4.0,
        True,
    )
    assert ops.tune24(50, 24, 48, activation="gelu") == choice
    assert len(timed) == 1
    assert ops.tune24(50, 24, 24, activation="gelu") is None  # no kernel takes 24 inputs
