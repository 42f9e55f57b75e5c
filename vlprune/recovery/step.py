"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batches import TrainBatch
from .config import TrainConfig
from .gathered import mean_over_ranks
from .sharding import clip_norm_, local
from .state import Progress

__all__ = ["RECORDED", "Refused", "Step", "hold_", "learning_rate"]

# what a line of the log has beside the terms of the loss
RECORDED = ("step", "loss", "lr", "grad_norm")

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's bound, beyond which SigLIP models are


class Refused(ValueError):
    """A step that no rank took, because of what every rank found."""


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of a step: a straight rise in the first ``warmup * steps``, then a cosine to its last share."""
    warmup = int(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


@torch.no_grad()
def hold_(tensors: Mapping[str, Tensor], zeros: Mapping[str, Tensor]) -> None:
    """Set tensors to zero, in place, where their zeros by name are True; sharded as they are."""
    for name, zero in zeros.items():
        local(tensors[name]).masked_fill_(local(zero), 0.0)


class Step:
    """One optimizer step: rate, loss, gradients under the masks, update.

    Args:
        kind: for errors.
        objective: gives the terms of the loss for a batch.
        state: what the step changes.
        config: how to train.
        trained: the parameters by name.
        zeros: name -> True where a parameter is held at zero; sharded as the parameter is.
        steps: of the whole training.
        averaged: parameters whose gradients the objective does not average over the ranks.

    """

    def __init__(
        self,
        kind: str,
        objective: nn.Module,
        state: Progress,
        config: TrainConfig,
        trained: Mapping[str, nn.Parameter],
        zeros: Mapping[str, Tensor],
        steps: int,
        averaged: Collection[nn.Parameter] = (),
    ) -> None:
        self.kind, self.objective, self.state, self.config = kind, objective, state, config
        self.trained, self.zeros, self.steps, self.averaged = trained, zeros, steps, averaged
        sigmoid = getattr(state.model, "logit_bias", None) is not None
        self._bounded = None if sigmoid else trained.get("logit_scale")

    def __call__(self, number: int, batch: TrainBatch) -> dict[str, Any]:
        """Take step `number` and return its line of the log."""
        config, state = self.config, self.state
        rate = learning_rate(number, self.steps, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        dtype = _AMP.get(config.amp or "")
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
            terms: dict[str, Tensor] = self.objective(batch)
        every = torch.stack([term.float() if term.dtype.itemsize < 4 else term for term in terms.values()])
        values = dict(zip(terms, mean_over_ranks(every.detach().clone()).tolist(), strict=True))
        loss = sum(values.values())
        if not math.isfinite(loss):
            self._refuse(number, "the loss is", loss, values)
        if not every.requires_grad:
            raise Refused(
                f"{self.kind}: nothing that is trained has a part in {', '.join(terms)}; train something in "
                "the towers that are compared"
            )
        torch.autograd.backward(state.scaler.scale(every.sum()))
        for parameter in self.averaged:
            if parameter.grad is not None:
                parameter.grad.copy_(mean_over_ranks(parameter.grad))
        state.scaler.unscale_(state.optimizer)
        grads = {name: grad for name in self.zeros if (grad := self.trained[name].grad) is not None}
        hold_(grads, {name: self.zeros[name] for name in grads})
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = clip_norm_(self.trained.values(), limit)
        if not math.isfinite(norm) and not state.scaler.is_enabled():
            self._refuse(number, "the gradient's norm is", norm, values)
        scale = state.scaler.get_scale()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        # lower after a step that fp16 was too narrow for, and that was not taken
        if state.scaler.get_scale() >= scale:
            self._after_step()
        shown = norm if math.isfinite(norm) else None  # JSON has no infinity
        record = {"step": number, "loss": loss, **values, "lr": rate, "grad_norm": shown}
        state.history.append(record)
        return record

    @torch.no_grad()
    def _after_step(self) -> None:
        hold_(self.trained, self.zeros)
        if self._bounded is not None:
            self._bounded.clamp_(0.0, _MAX_LOGIT_SCALE)
        for name, parameter in self.trained.items():
            if self.config.ema is not None:
                local(self.state.ema[name]).lerp_(local(parameter), 1 - self.config.ema)

    def _refuse(self, number: int, what: str, value: float, terms: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {term:g}" for name, term in terms.items())
        raise Refused(
            f"{self.kind}: {what} {value} at step {number} ({shown}); the weights are those before it. "
            "A lower learning_rate, warmup or clip_norm may help"
        )
