"""The open_clip config of a model, read off the model itself.

open_clip does not keep the config on what it builds, and a pruned model may have been built by hand.
Every value here is read from a module, so the result needs checking against a model built from it;
`vlprune.models.tree` does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Recipe", "candidates", "known_name", "recover", "uses_fp32_norms"]


@dataclass(frozen=True)
class Recipe:
    """What builds a model's skeleton: an open_clip config, and which layer norms it used."""

    config: dict[str, Any]
    fp32_norms: bool = False


def recover(model: nn.Module) -> Recipe:
    """Read the config off a CLIP, CustomTextCLIP or CoCa, pruned or not.

    Raises:
        ValueError: another class, or a tower that open_clip does not build.

    """
    try:
        return Recipe(_recover(model), uses_fp32_norms(model))
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"model: a part is not as open_clip builds it: {error}") from error


def uses_fp32_norms(model: nn.Module) -> bool:
    """Whether the layer norms are the ones that open_clip builds for half precision."""
    return any(type(norm).__name__ == "LayerNormFp32" for norm in _norms(model))


def _recover(model: nn.Module) -> dict[str, Any]:
    kind = type(model)
    if not kind.__module__.startswith("open_clip.") or kind.__name__ not in (
        "CLIP",
        "CustomTextCLIP",
        "CoCa",
    ):
        raise ValueError(f"model: expected open_clip's CLIP, CustomTextCLIP or CoCa, got {kind.__name__}")
    m: Any = model
    visual, text = m.visual, m if kind.__name__ == "CLIP" else m.text
    text_cfg, text_dim = _text(text)
    config: dict[str, Any] = {
        "embed_dim": text_dim or _visual_dim(visual),
        "vision_cfg": _vision(visual),
        "text_cfg": text_cfg,
    }
    if kind.__name__ != "CLIP":
        config["custom_text"] = True
    if kind.__name__ == "CoCa":
        decoder = m.text_decoder
        blocks = _block_cfg(decoder.resblocks, decoder.ln_final.normalized_shape[0])
        keys = ("heads", "ls_init_value")
        config["multimodal_cfg"] = {
            "context_length": decoder.context_length,
            "width": decoder.ln_final.normalized_shape[0],
            "layers": len(decoder.resblocks),
            **{key: blocks[key] for key in keys if key in blocks},
        }
        text_cfg["vocab_size"] = decoder.text_projection.shape[1]
    if any(_is_quick(module) for module in model.modules()):
        config["quick_gelu"] = True
    if m.logit_scale.dim() == 1:
        config["nonscalar_logit_scale"] = True
    if m.logit_bias is not None:
        config["init_logit_bias"] = 0.0
    return config


def candidates(model: nn.Module) -> Iterator[Recipe]:
    """Yield the configs of open_clip's registry that have this model's embedding, image and text sizes."""
    own = recover(model)
    for _, config in _registered(own.config["embed_dim"]):
        pairs = ((own.config[key], config.get(key, {})) for key in ("vision_cfg", "text_cfg"))
        if all(_alike(a, b) for a, b in pairs):
            yield Recipe(config, own.fp32_norms)


def known_name(recipe: Recipe) -> str | None:
    """Name the registered open_clip model that agrees in all that the recipe says."""
    for name, config in _registered(recipe.config["embed_dim"]):
        if _agrees(recipe.config, config):
            return name
    return None


def _registered(embed_dim: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the registered image-text models of an embedding width; later open_clips know other kinds too."""
    import open_clip

    known = {"vision_cfg", "text_cfg", "multimodal_cfg"}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        parts = {key for key in config if key.endswith("_cfg")}
        if config.get("embed_dim") == embed_dim and {"vision_cfg", "text_cfg"} <= parts <= known:
            yield name, config


def _alike(own: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("width", "patch_size", "image_size", "vocab_size", "context_length", "timm_model_name")
    return all(own[key] == other[key] for key in keys if key in own and key in other)


def _agrees(own: dict[str, Any], other: dict[str, Any]) -> bool:
    from open_clip.coca_model import MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    parts = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
    if any((part in own) != (part in other) for part in parts):
        return False
    # a transformers tower is only known by the folder its config was written to
    if "hf_model_name" in own["text_cfg"] or "hf_model_name" in other["text_cfg"]:
        return False
    if bool(own.get("quick_gelu")) != bool(other.get("quick_gelu")):
        return False
    for part in parts.keys() & own.keys():
        full = vars(parts[part]()) | other[part]
        for key, value in own[part].items():
            # timm's default pooling goes by '' as well as by its name, layer scale forgets its start
            if key not in ("timm_pool", "ls_init_value") and not _equal(value, full.get(key)):
                return False
        if (full.get("ls_init_value") is None) != (own[part].get("ls_init_value") is None):
            return False
    return True


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return abs(a - b) < 1e-3
    return (a or None) == (b or None)


def _vision(visual: Any) -> dict[str, Any]:
    kind = type(visual).__name__
    cfg: dict[str, Any] = {"image_size": _scalar(visual.image_size)}
    if kind == "TimmModel":
        return cfg | _timm(visual)
    if kind == "ModifiedResNet":
        width = visual.layer1[0].conv1.in_channels
        layers = [len(getattr(visual, f"layer{i}")) for i in range(1, 5)]
        return cfg | {"layers": layers, "width": width, "head_width": width * 32 // visual.attnpool.num_heads}
    if kind != "VisionTransformer":
        raise ValueError(f"model.visual: expected a tower that open_clip builds, got {kind}")
    width = visual.conv1.out_channels
    blocks = _block_cfg(visual.transformer.resblocks, width)
    cfg |= {
        "patch_size": _scalar(visual.patch_size),
        "width": width,
        "layers": len(visual.transformer.resblocks),
        "head_width": width // blocks.pop("heads"),
        "no_ln_pre": isinstance(visual.ln_pre, nn.Identity),
        "pool_type": visual.pool_type,
        "final_ln_after_pool": visual.final_ln_after_pool,
        "output_tokens": visual.output_tokens,
        **blocks,
        **_norm_cfg(visual.ln_post),
    }
    if not isinstance(visual.patch_dropout, nn.Identity):
        cfg["patch_dropout"] = visual.patch_dropout.prob
    if visual.attn_pool is not None:
        cfg["attentional_pool"] = getattr(visual, "attn_pool_type", "") or True
        cfg["attn_pooler_queries"] = visual.attn_pool.query.shape[0]
        cfg["attn_pooler_heads"] = visual.attn_pool.attn.num_heads
    return cfg


def _timm(visual: Any) -> dict[str, Any]:
    trunk, head = visual.trunk, visual.head
    architecture = getattr(trunk, "default_cfg", {}).get("architecture")
    if not architecture:
        raise ValueError(f"model.visual.trunk: {type(trunk).__name__} does not know its timm name")
    cfg: dict[str, Any] = {
        "timm_model_name": architecture,
        "timm_pool": getattr(trunk, "global_pool", "") or "",
    }
    pools = {"AttentionPool2d": "abs_attn", "RotAttentionPool2d": "rot_attn"}
    if hasattr(head, "pool"):
        cfg["timm_pool"] = pools.get(type(head.pool).__name__, "")
    if hasattr(head, "proj"):
        cfg |= {"timm_proj": "linear", "timm_proj_bias": head.proj.bias is not None}
        cfg["timm_drop"] = head.drop.p
    elif hasattr(head, "mlp"):
        cfg |= {"timm_proj": "mlp", "timm_proj_bias": head.mlp.fc2.bias is not None}
        cfg["timm_drop"] = head.mlp.drop1.p
    else:
        bare = isinstance(getattr(trunk, "head", None), nn.Identity) and not hasattr(head, "pool")
        cfg["timm_proj"] = "none" if bare else ""
    drops = [m.drop_prob for m in trunk.modules() if type(m).__name__ == "DropPath" and m.drop_prob]
    if drops:
        cfg["timm_drop_path"] = max(drops)
    patch_drop = getattr(trunk, "patch_drop", None)
    if patch_drop is not None and not isinstance(patch_drop, nn.Identity):
        cfg["patch_dropout"] = patch_drop.prob
    return cfg


def _text(text: Any) -> tuple[dict[str, Any], int | None]:
    """Read the text config, and the embedding's width where the tower tells."""
    kind = type(text).__name__
    if kind == "HFTextEncoder":
        proj = {nn.Identity: None, nn.Linear: "linear"}.get(type(text.proj), "mlp")
        cfg: dict[str, Any] = {
            "hf_model_name": "text",
            "hf_proj_type": proj,
            "hf_pooler_type": re.sub(r"(?<!^)(?=[A-Z])", "_", type(text.pooler).__name__).lower(),
            "output_tokens": text.output_tokens,
        }
        return cfg, text.output_dim
    if kind not in ("TextTransformer", "CLIP"):
        raise ValueError(f"model.text: expected TextTransformer or HFTextEncoder, got {kind}")
    width, projection = text.token_embedding.embedding_dim, text.text_projection
    cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": width,
        "layers": len(text.transformer.resblocks),
        "pool_type": text.text_pool_type if kind == "CLIP" else text.pool_type,
        "eos_id": getattr(text, "text_eos_id" if kind == "CLIP" else "eos_id", None),
        "no_causal_mask": text.attn_mask is None,
        **_block_cfg(text.transformer.resblocks, width),
        **_norm_cfg(text.ln_final),
    }
    if kind == "TextTransformer":
        cfg |= {
            "embed_cls": text.cls_emb is not None,
            "pad_id": text.pad_id,
            "output_tokens": text.output_tokens,
        }
    if projection is None:
        return cfg | {"proj_type": "none"}, None
    if isinstance(projection, nn.Linear):
        return cfg | {"proj_bias": True}, projection.out_features
    return cfg, projection.shape[1]


def _visual_dim(visual: Any) -> int:
    if type(visual).__name__ == "TimmModel":
        linears = [m for m in visual.modules() if isinstance(m, nn.Linear)]
        return int(linears[-1].out_features)
    return int(visual.output_dim)


def _block_cfg(blocks: nn.ModuleList, width: int) -> dict[str, Any]:
    """Read what open_clip's blocks share: heads, MLP ratio, layer scale, activation, custom options."""
    every: list[Any] = [block for block in blocks if _is_readable(block)]
    if not every:
        raise ValueError("model: no block of a tower has open_clip's attention and MLP")
    first, hidden = every[0], max(int(block.mlp.c_fc.out_features) for block in every)
    ratio = hidden / width
    cfg: dict[str, Any] = {
        "heads": width // first.attn.head_dim,
        # open_clip truncates the product, which may come out just below the whole number
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
    }
    if not isinstance(first.ls_1, nn.Identity):
        cfg["ls_init_value"] = 1.0
    approximate = getattr(first.mlp.gelu, "approximate", "none")
    if approximate != "none":
        cfg["act_kwargs"] = {"approximate": approximate}
    if type(first).__name__ == "CustomResidualAttentionBlock":
        cfg |= {
            "block_type": "custom",
            "qk_norm": not isinstance(first.attn.ln_q, nn.Identity),
            "scaled_cosine_attn": first.attn.logit_scale is not None,
            "scale_heads": first.attn.head_scale is not None,
            "scale_attn_inner": not isinstance(first.attn.ln_inner, nn.Identity),
            "scale_attn": not isinstance(first.ln_attn, nn.Identity),
            "scale_fc": not isinstance(first.mlp.ln, nn.Identity),
        }
    return cfg


def _is_readable(block: Any) -> bool:
    # one block that was tampered with is better named by the comparison that follows
    attention, fc = getattr(block, "attn", None), getattr(getattr(block, "mlp", None), "c_fc", None)
    return hasattr(attention, "head_dim") and hasattr(fc, "out_features")


def _norm_cfg(norm: nn.LayerNorm) -> dict[str, Any]:
    return {} if norm.eps == 1e-5 else {"norm_kwargs": {"eps": norm.eps}}


def _is_quick(module: nn.Module) -> bool:
    fused = getattr(module, "activation", None) == "quick_gelu"
    return fused or type(module).__name__ == "QuickGELU"


def _norms(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the norms whose class the precision decides; those inside attention are always float32."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not re.search(r"\.attn\.ln_(q|k|inner)$", name):
            yield module


def _scalar(size: Any) -> Any:
    if isinstance(size, int | torch.SymInt):
        return size
    return size[0] if size[0] == size[1] else list(size)
