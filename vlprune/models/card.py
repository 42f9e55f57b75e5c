"""The model card of a saved folder."""

from __future__ import annotations

from typing import Any

from torch import nn

from .recipe import Recipe, known_name

__all__ = ["model_card"]


def model_card(described: dict[str, Any], model: nn.Module, recipe: Recipe) -> str:
    """Write README.md: a YAML header that model hubs read, what was done to the model, how to load it."""
    name, source = known_name(recipe), described["source"]
    header = ["---", "library_name: vlprune", "pipeline_tag: zero-shot-image-classification"]
    header += ["tags:", "- clip", "- open_clip", "- pruning", "- sparsity"]
    if base := _hub_name(source):
        header.append(f"base_model: {base}")
    layers, weights = described["layers"], described["weights"]
    total = sum(p.numel() for p in model.parameters())
    facts = [f"{type(model).__name__}, {total:,} parameters" + (f", architecture {name}" if name else "")]
    if source:
        facts.append(f"made from `{source}`")
    if count := len(weights["packed"]):
        facts.append(f"{count} weights are 2:4 sparse and stored packed")
    if count := len(layers.get("linear24", {})):
        facts.append(f"{count} layers run as packed `Linear24`")
    if count := len(layers.get("quantized24", {})):
        facts.append(f"{count} layers run as packed `QuantizedLinear24`, in 8 bits")
    if count := len(layers.get("shapes", {})):
        facts.append(f"{count} tensors are smaller than in the original (removed heads or neurons)")
    if stacks := layers.get("depth"):
        facts.append("shortened stacks: " + ", ".join(f"{k} to {v}" for k, v in stacks.items()))
    if described["tokenizer"]["kind"] == "unknown":
        facts.append("the tokenizer is not recorded: use the original model's")
    body = ["", "# Pruned vision-language model", "", *(f"- {fact}" for fact in facts), ""]
    body += [
        "```python",
        "import vlprune",
        "",
        'model = vlprune.from_pretrained("path/to/this/folder")',
        "```",
    ]
    return "\n".join([*header, "---", *body, ""])


def _hub_name(source: str | None) -> str | None:
    """Name the hub repository that the weights came from, where open_clip knows one."""
    if not source:
        return None
    if source.startswith("hf-hub:"):
        return source.removeprefix("hf-hub:")
    from open_clip.pretrained import get_pretrained_cfg

    model, _, tag = source.partition(":")
    hub = get_pretrained_cfg(model.replace("/", "-"), tag).get("hf_hub", "") if tag else ""
    return str(hub).rstrip("/") or None
