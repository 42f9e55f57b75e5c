"""Small random models of every kind that the adapter knows, and inputs for them."""

import json

import torch

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}
TEXT = {"context_length": 9, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
CUSTOM = {
    "block_type": "custom",
    "qk_norm": True,
    "scale_heads": True,
    "scale_attn_inner": True,
    "scale_attn": True,
    "scale_fc": True,
}
KINDS = (
    "clip",
    "siglip-like",
    "custom-text",
    "custom-blocks",
    "pooler",
    "coca",
    "timm",
    "timm-map",
    "hf",
    "half",
)


def build(kind, tmp_path=None):
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP, convert_weights_to_lp

    torch.manual_seed(1)
    if kind == "clip":
        model = CLIP(32, VISION, TEXT)
    elif kind == "siglip-like":
        vision = {"ls_init_value": 0.1, "no_ln_pre": True, "final_ln_after_pool": True, "pool_type": "avg"}
        vision |= {"norm_kwargs": {"eps": 1e-6}, "patch_dropout": 0.5}
        text = {"mlp_ratio": 3.0, "pool_type": "eos", "eos_id": 7}
        options = {"quick_gelu": True, "init_logit_bias": -10.0, "nonscalar_logit_scale": True}
        model = CLIP(32, VISION | vision, TEXT | text, **options)
    elif kind == "custom-text":
        vision = VISION | {"act_kwargs": {"approximate": "tanh"}, "image_size": [32, 48]}
        model = CustomTextCLIP(32, vision, TEXT | {"no_causal_mask": True, "proj_type": "none"})
    elif kind == "custom-blocks":
        text = TEXT | CUSTOM | {"embed_cls": True, "proj_bias": True}
        model = CustomTextCLIP(32, VISION | CUSTOM, text)
        _vary(model)
    elif kind == "pooler":
        model = CLIP(32, VISION | {"attentional_pool": True, "attn_pooler_heads": 2}, TEXT)
    elif kind == "coca":
        vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        decoder = {"context_length": 9, "width": 32, "heads": 2, "layers": 2}
        model = CoCa(32, decoder, TEXT | {"embed_cls": True, "output_tokens": True}, vision)
        torch.nn.init.normal_(model.text_decoder.text_projection)
    elif kind == "timm":
        vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "linear"}
        model = CustomTextCLIP(32, vision, TEXT)
    elif kind == "timm-map":
        vision = {"timm_model_name": "vit_base_patch32_siglip_256", "timm_pool": "map", "timm_proj": "none"}
        vision["image_size"] = 256
        model = CustomTextCLIP(768, vision, TEXT, init_logit_bias=-10.0)
    elif kind == "hf":
        model = CustomTextCLIP(32, VISION, {"hf_model_name": bert(tmp_path), "hf_model_pretrained": False})
    elif kind == "half":
        model = CLIP(32, VISION, TEXT, cast_dtype=torch.bfloat16)
        convert_weights_to_lp(model, torch.bfloat16)
    return model.eval()


def bert(tmp_path):
    """Write the config of a small BERT and return its folder."""
    folder = tmp_path / "bert"
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    config = {
        "model_type": "bert",
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _vary(model):
    # norms and scales that are all ones would hide a wrong order of operations
    for name, parameter in model.named_parameters():
        if "ln" in name or "scale" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)


def inputs(model, batch=2):
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(batch, 3, *size, generator=generator)
    texts = torch.randint(1, 49, (batch, 9), generator=generator)
    return images.to(
        next(p for n, p in model.visual.named_parameters() if "conv1" in n or "patch" in n).dtype
    ), texts


@torch.no_grad()
def outputs(model):
    images, texts = inputs(model)
    found = [model.encode_image(images), model.encode_text(texts)]
    if hasattr(model, "text_decoder"):
        found.append(model(images, texts)["logits"])
    return found


def assert_close(ours, theirs):
    """Float tolerance: torch's fused attention in eval mode adds up in another order than SDPA."""
    for a, b in zip(ours, theirs, strict=True):
        eps = torch.finfo(a.dtype).eps
        tolerance = 32 * eps * float(b.float().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
