"""The one training loop: AdamW, warm-up and cosine, masks held, interrupted at any moment and continued."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files import write_text
from ..models.running import model_device
from .batches import Source, TrainBatch
from .config import TrainConfig
from .objective import Objective
from .outputs import checkpointed
from .report import TrainReport
from .state import Progress, load_state, save_state

__all__ = ["fit", "learning_rate"]

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's bound
LOG_FILE = "log.jsonl"


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    kind: str,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    *,
    held: Mapping[str, Tensor] | None = None,
    out: Path | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Minimise an objective over its student's trainable parameters, in place.

    A step is a function of the weights, the optimizer and the step's number alone, so a run that was
    killed goes on from the last checkpoint in `out` as if nothing had happened.

    Args:
        kind: for the report, the bar and errors.
        objective: the student and its loss.
        source: the batches.
        config: how to train.
        held: parameter name -> keep mask: no step changes these weights where it is False, where they must
            be zero.
        out: folder for checkpoints and ``log.jsonl`` (a line a step), and to resume from.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: a loss or gradient that is not finite (the step is named, and the weights are those
            before it); nothing to train; a checkpoint of another run.

    """
    start = time.perf_counter()
    student, device = objective.student, model_device(objective.student)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"{kind}: the student has no trainable parameter (requires_grad)")
    zeros = {name: ~keep.to(device) for name, keep in (held or {}).items() if name in trained}
    state = Progress(
        student,
        _adamw(trained, config),
        torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
        _identity(kind, source, config, trained, zeros),
        {} if config.ema is None else {name: p.detach().clone() for name, p in trained.items()},
    )
    if out is not None:
        load_state(out, state)
        _cut_log(out / LOG_FILE, state.step)
    resumed = state.step
    step = _Step(kind, objective, state, config, trained, zeros, source.steps)
    with ExitStack() as stack:
        stack.callback(_restore_modes, [(m, m.training) for m in student.modules()])
        student.train()
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if config.checkpointing:
            stack.enter_context(checkpointed(student))
        log = None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context((out / LOG_FILE).open("a", encoding="utf-8"))
        disable = None if progress is None else not progress
        bar = stack.enter_context(
            tqdm(total=source.steps, initial=resumed, desc=kind, unit="step", disable=disable)
        )
        for number, batch in enumerate(source.ahead(resumed, source.steps), start=resumed):
            torch.manual_seed(config.seed * 1_000_003 + number)
            record = step(number, batch.to(device))
            if log is not None:
                log.write(json.dumps(record) + "\n")
                log.flush()
            bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
            bar.update()
            if out is not None and (state.step % config.save_every == 0 or state.step == source.steps):
                save_state(out, state)
    state.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, mean in state.ema.items():
            trained[name].copy_(mean)
    history = state.history
    terms = {name: tuple(row[name] for row in history) for name in history[0]}
    losses = tuple(sum(row.values()) for row in history)
    size = sum(p.numel() for p in trained.values())
    return TrainReport(kind, len(history), size, losses, terms, time.perf_counter() - start, resumed)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of a step: a straight rise in the first ``warmup * steps``, then a cosine to its last share."""
    warmup = int(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * 0.5 * (1.0 + math.cos(math.pi * done)))


class _Step:
    """One optimizer step."""

    def __init__(
        self,
        kind: str,
        objective: Objective,
        state: Progress,
        config: TrainConfig,
        trained: Mapping[str, nn.Parameter],
        zeros: Mapping[str, Tensor],
        steps: int,
    ) -> None:
        self.kind, self.objective, self.state, self.config = kind, objective, state, config
        self.trained, self.zeros, self.steps = trained, zeros, steps

    def __call__(self, number: int, batch: TrainBatch) -> dict[str, Any]:
        """Take step `number` and return its line of the log."""
        config, state = self.config, self.state
        rate = learning_rate(number, self.steps, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        dtype = _AMP.get(config.amp or "")
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
            terms = self.objective(batch)
        values = {name: float(term.detach()) for name, term in terms.items()}
        loss = torch.stack(
            [term.float() if term.dtype.itemsize < 4 else term for term in terms.values()]
        ).sum()
        if not bool(loss.isfinite()):
            self._refuse(number, "the loss is", float(loss.detach()), values)
        torch.autograd.backward(state.scaler.scale(loss))
        state.scaler.unscale_(state.optimizer)
        for name, zero in self.zeros.items():
            if (grad := self.trained[name].grad) is not None:
                grad.masked_fill_(zero, 0.0)
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), limit))
        if not math.isfinite(norm) and not state.scaler.is_enabled():
            self._refuse(number, "the gradient's norm is", norm, values)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        self._after_step()
        state.history.append(values)
        return {"step": number, "loss": sum(values.values()), **values, "lr": rate, "grad_norm": norm}

    @torch.no_grad()
    def _after_step(self) -> None:
        for name, zero in self.zeros.items():
            self.trained[name].masked_fill_(zero, 0.0)
        for name, parameter in self.trained.items():
            if name.rpartition(".")[2] == "logit_scale" and parameter.numel() == 1:
                parameter.clamp_(0.0, _MAX_LOGIT_SCALE)
            if self.config.ema is not None:
                self.state.ema[name].lerp_(parameter, 1 - self.config.ema)

    def _refuse(self, number: int, what: str, value: float, terms: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {term:g}" for name, term in terms.items())
        raise ValueError(
            f"{self.kind}: {what} {value} at step {number} ({shown}); the weights are those before it. "
            "A lower learning_rate, warmup or clip_norm may help"
        )


def _adamw(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)


def _identity(
    kind: str,
    source: Source,
    config: TrainConfig,
    trained: Mapping[str, Tensor],
    zeros: Mapping[str, Tensor],
) -> dict[str, Any]:
    settings = {name: value for name, value in config.to_dict().items() if name != "save_every"}
    return {
        "kind": kind,
        "config": settings,
        "steps": source.steps,
        "data": source.length,
        "shapes": {name: list(p.shape) for name, p in trained.items()},
        "zeros": {name: int(zero.sum()) for name, zero in zeros.items()},
    }


def _cut_log(path: Path, step: int) -> None:
    """Take the lines of steps that will be taken again out of the log."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()[:step]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
