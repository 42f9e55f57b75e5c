"""Models with layers in 8 bits, saved and loaded: the same bits, and nothing that means other numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlprune
from vlprune import MagnitudeConfig
from vlprune.models.split import replace
from vlprune.nn import Linear24, QuantizedLinear24

from .zoo import build, outputs

DTYPES = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def quantized(dtype, of=torch.float32, every=1):
    """A small CLIP in `of`, pruned and packed, with every so-many-th packed layer in 8 bits; their names."""
    model = build("clip").to(of)
    vlprune.prune_(model, MagnitudeConfig())
    vlprune.sparsify_(model, only_if_faster=False)
    names = [name for name, module in model.named_modules() if isinstance(module, Linear24)][::every]
    for name in names:
        replace(model, name, QuantizedLinear24.from_linear24(model.get_submodule(name), dtype))
    return model, names


def bits(model):
    return {name: (t.dtype, t.reshape(-1).view(torch.uint8)) for name, t in model.state_dict().items()}


@every_dtype
@pytest.mark.parametrize(
    ("of", "every"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.float32, 2)], ids=str
)
def test_comes_back_bit_by_bit(dtype, of, every, tmp_path):
    model, names = quantized(dtype, of, every)
    vlprune.save_pretrained(model, tmp_path / "saved")
    back = vlprune.from_pretrained(tmp_path / "saved")
    ours, theirs = bits(model), bits(back)
    assert list(ours) == list(theirs)
    for name, (kind, stored) in ours.items():
        assert theirs[name][0] is kind
        assert torch.equal(theirs[name][1], stored), name
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    for name in names:
        one, two = model.get_submodule(name), back.get_submodule(name)
        assert type(two) is QuantizedLinear24
        assert (two.original_dtype, two.activation, two.backend) == (of, one.activation, one.backend)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(back), strict=True))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"- {len(names)} layers run as packed `QuantizedLinear24`, in 8 bits" in card


@every_dtype
def test_masks_are_those_of_what_is_computed_with(dtype):
    model, names = quantized(dtype)
    found = vlprune.masks(model)
    assert sorted(found) == sorted(f"{name}.weight" for name in names)
    for name in names:
        weight = model.get_submodule(name).weight
        assert torch.equal(found[f"{name}.weight"], weight != 0)
        assert int(found[f"{name}.weight"].sum()) <= weight.numel() // 2


def edited(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(next(iter(config["layers"]["quantized24"].values())))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: layer.update(dtype="int4"), r"c_fc.dtype: expected one of int8, .*, got 'int4'"),
        (lambda layer: layer.update(dtype=["int8"]), r"c_fc.dtype: expected one of int8, .*, got \['int8'\]"),
        (lambda layer: layer.pop("original_dtype"), "c_fc.original_dtype: expected one of .*, got None"),
        (lambda layer: layer.update(dtype="float32"), "c_fc.dtype: expected one of int8, .*, got 'float32'"),
        (lambda layer: layer.update(original_dtype="int8"), "original_dtype: expected .*float32, .*'int8'"),
        (lambda layer: layer.update(dtype="float8_e4m3fn"), "dtype.* .*float8_e4m3fn, got .*int8"),
        (lambda layer: layer.update(in_features=60), "expected shape"),
    ],
    ids=["unknown", "list", "missing", "float", "of int8", "other", "width"],
)  # fmt: skip
def test_a_config_that_means_something_else_is_refused(change, message, tmp_path):
    model, names = quantized(torch.int8)
    first = "visual.transformer.resblocks.0.mlp.c_fc"
    assert first in names
    for name in names:
        if name != first:
            layer = model.get_submodule(name)
            dense = torch.nn.Linear(layer.in_features, layer.out_features)
            replace(model, name, dense)
    vlprune.save_pretrained(model, tmp_path / "saved")
    edited(tmp_path / "saved", change)
    with pytest.raises(ValueError, match=message):
        vlprune.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("leaf", "dtype"), [("values", torch.float32), ("weight_scale", torch.bfloat16), ("meta", torch.int64)]
)
def test_tensors_of_another_dtype_are_refused(leaf, dtype, tmp_path):
    model, names = quantized(torch.float8_e4m3fn)
    vlprune.save_pretrained(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    stored = load_file(file)
    key = f"{names[0]}.{leaf}"
    stored[key] = stored[key].to(dtype)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{key}: expected dtype .* got {dtype}"):
        vlprune.from_pretrained(tmp_path / "saved")
