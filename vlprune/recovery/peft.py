"""Adapters alone in a folder of PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.

Names, shapes and scale are PEFT's for LoRA, so that its tools read the adapters; what it has no name for,
masks and whether they are over the sum, lies beside them in `keep_masks.safetensors`, a bit a weight.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import put_in_place, read_json, write_json
from .adapters import add_sparse_lora_, attached
from .config import SparseLoRAConfig
from .sparselora import SparseLoRALinear

__all__ = ["load_adapters_", "save_adapters"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MASKS_FILE = "keep_masks.safetensors"

_PREFIX = "base_model.model."
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}


def save_adapters(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a model's adapters and masks, not its weights.

    Args:
        model: with adapters.
        directory: a new or empty folder, or one of adapters, which is replaced.

    Raises:
        ValueError: the model has no adapters, or the folder holds something else.

    """
    from safetensors.torch import save_file

    state = attached(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLoRALinear)}
    if state is None or not layers:
        raise ValueError("model: it has no adapters; add_sparse_lora_ adds them")
    target = Path(directory).resolve()
    entries = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if target.is_file() or entries - {CONFIG_FILE, WEIGHTS_FILE, MASKS_FILE}:
        raise ValueError(f"directory: {target} holds something other than adapters; it is left as it is")
    work = target.with_name(f".{target.name}.saving-{uuid.uuid4().hex[:8]}")
    work.mkdir(parents=True)
    try:
        weights: dict[str, Tensor] = {}
        for name, layer in layers.items():
            weights[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
            weights[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
        save_file(weights, work / WEIGHTS_FILE, metadata={"format": "pt"})
        packed = {f"{name}.weight": _pack(layer.keep) for name, layer in layers.items()}
        # not in PEFT's own file: its reader warns of fields that it does not know
        about = {"format": "pt", "vlprune": json.dumps(state.config.to_dict())}
        save_file(packed, work / MASKS_FILE, metadata=about)
        write_json(work / CONFIG_FILE, _peft_config(layers))
        for name in (WEIGHTS_FILE, MASKS_FILE):
            # safetensors makes its files private to the user
            shutil.copymode(work / CONFIG_FILE, work / name)
        put_in_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_adapters_(
    model: nn.Module, directory: str | os.PathLike[str], masks: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Put saved adapters on a model like the one they were made on, in place; see `add_sparse_lora_`.

    Args:
        model: without adapters, its weights dense or pruned.
        directory: what `save_adapters` wrote, or LoRA adapters that PEFT wrote for these layers.
        masks: keep masks by parameter name; by default those of the folder, and the model's own zeros
            where it has none.

    Returns:
        Qualified names of the adapted layers.

    Raises:
        ValueError: a file that is missing or broken, or does not fit the model, which is then as it was.

    """
    folder = Path(directory)
    config = _read_config(folder / CONFIG_FILE)
    weights = _read_tensors(folder / WEIGHTS_FILE)
    names = list(dict.fromkeys(key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in weights))
    parameters = dict(model.named_parameters())
    sparse = True
    if (folder / MASKS_FILE).exists():
        stored = _read_tensors(folder / MASKS_FILE)
        sparse = _written(folder / MASKS_FILE).sparse
        if masks is None:
            masks = {name: _unpack(bits, name, _shape(parameters, name)) for name, bits in stored.items()}
    shapes = {}
    for name in names:
        pair = [weights.get(f"{_PREFIX}{name}.lora_{side}.weight") for side in "AB"]
        out, inputs = _shape(parameters, f"{name}.weight")
        rank = _of(config, "r", name)
        expected = [(rank, inputs), (out, rank)]
        if [None if t is None else tuple(t.shape) for t in pair] != expected:
            raise ValueError(f"{folder / WEIGHTS_FILE}: {name} expects lora_A and lora_B of {expected}")
        shapes[name] = rank
    own = SparseLoRAConfig(
        rank=shapes,
        alpha={name: _of(config, "lora_alpha", name) for name in names},
        targets=tuple(names),
        sparse=sparse,
    )
    added = add_sparse_lora_(model, own, masks)
    with torch.no_grad():
        for name in added:
            layer: Any = model.get_submodule(name)
            layer.lora_A.copy_(weights[f"{_PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(weights[f"{_PREFIX}{name}.lora_B.weight"])
    return added


def _peft_config(layers: Mapping[str, SparseLoRALinear]) -> dict[str, Any]:
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.alpha,
        # names are patterns to PEFT, and the text tower's are the ends of the image tower's in open_clip
        "rank_pattern": {_only(name): m.rank for name, m in layers.items() if m.rank != first.rank},
        "alpha_pattern": {_only(name): m.alpha for name, m in layers.items() if m.alpha != first.alpha},
        "target_modules": "|".join(map(re.escape, layers)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }


def _only(name: str) -> str:
    return f"^{re.escape(name)}"


def _of(config: Mapping[str, Any], field: str, name: str) -> Any:
    """A layer's rank or alpha: that of the first pattern which is its name or the end of it, as in PEFT."""
    for pattern, value in (config.get(_PATTERNS[field]) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return config[field]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f'{path}: expected "peft_type": "LORA"')
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float):
            raise ValueError(f"{path}: {field}: expected a number, got {config.get(field)!r}")
    for field in _PATTERNS.values():
        if not isinstance(patterns := config.get(field) or {}, dict):
            raise ValueError(f"{path}: {field}: expected patterns with numbers, got {patterns!r:.80}")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{path}: {field}: {pattern!r} is no pattern: {error}") from None
    for field in ("use_dora", "use_rslora", "fan_in_fan_out"):
        if config.get(field):
            raise ValueError(f"{path}: {field} is not supported, only plain LoRA is")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: no tensors can be read from it: {error}") from None


def _written(path: Path) -> SparseLoRAConfig:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = (file.metadata() or {}).get("vlprune", "{}")
    try:
        return SparseLoRAConfig.from_dict(json.loads(about))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _shape(parameters: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    # attention that is packed in the model is split when its adapters are added
    attention, _, part = name.removesuffix(".weight").rpartition(".")
    packed = parameters.get(f"{attention}.in_proj_weight")
    if packed is not None and part in ("q_proj", "k_proj", "v_proj"):
        return packed.shape[0] // 3, packed.shape[1]
    weight = parameters.get(name, packed if part == "qkv" else parameters.get(f"{attention}.{part}_weight"))
    if weight is None or weight.dim() != 2:
        raise ValueError(f"adapters: the model has no weight {name!r} for them")
    return weight.shape[0], weight.shape[1]


def _pack(keep: Tensor) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(keep.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    import numpy as np

    count = shape[0] * shape[1]
    if bits.numel() != (count + 7) // 8:
        raise ValueError(f"{name}: its mask has {bits.numel()} bytes, expected {(count + 7) // 8}")
    flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(shape)
