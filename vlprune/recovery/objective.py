"""What is minimised, as a module: a batch goes in, the weighted terms of the loss come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..losses import matching_loss
from ..models.running import evaluating, model_device
from . import losses
from .batches import TrainBatch
from .config import DistillConfig, RecoverConfig
from .gathered import gather_rows
from .outputs import Outputs, check_encoders, layer_map, outputs_of
from .sparselora import dense_teacher

__all__ = ["Distillation", "Objective", "SelfDistillation"]


class Objective(nn.Module, ABC):
    """A student and its loss; the sum of the terms is what is minimised."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    @abstractmethod
    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the terms by name, weighted; terms of weight 0 are not there."""


class SelfDistillation(Objective):
    """``(1 - lam) * task + lam * KL(teacher || student)``, the teacher in the student's own dense weights.

    He et al. 2024, arXiv 2404.02424.

    Args:
        model: with adapters.
        config: for `lam`.

    """

    def __init__(self, model: nn.Module, config: RecoverConfig) -> None:
        super().__init__(model)
        check_encoders("model", model)
        self.lam = config.lam

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Run the masked student and, unless lam is 0, the dense teacher."""
        own = outputs_of(self.student, batch)
        terms: dict[str, Tensor] = {}
        if self.lam < 1:
            terms["task"] = (1 - self.lam) * matching_loss(own.logits, _labels(batch), own.bias)
        if self.lam > 0:
            with torch.no_grad(), evaluating(self.student), dense_teacher(self.student):
                other = outputs_of(self.student, batch)
            terms["kl"] = self.lam * losses.kl_loss(own.logits, other.logits)
        return terms


class Distillation(Objective):
    """``itc * L_ITC + sim * L_sim + feat * L_feat + hidden * L_hidn``: MoPE-CLIP, arXiv 2403.07839.

    Args:
        student: what is trained.
        teacher: what it is to be like; it runs in eval mode without gradients.
        config: the weights, the towers, and which of the teacher's layers the student's stand for.

    Raises:
        ValueError: models that are no open_clip models, or on two devices; a teacher with parts that would
            be trained; layers that cannot be mapped.

    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DistillConfig) -> None:
        super().__init__(student)
        check_encoders("student", student)
        check_encoders("teacher", teacher)
        trained = {p: name for name, p in student.named_parameters() if p.requires_grad}
        if shared := [trained[p] for p in teacher.parameters() if p in trained]:
            raise ValueError(f"teacher: {shared[0]} is the student's own and would be trained; copy it")
        if model_device(teacher) != model_device(student):
            raise ValueError(
                f"teacher: it is on {model_device(teacher)} and the student on {model_device(student)}"
            )
        # in a tuple, so that it is no part of what is trained, saved and moved
        self._teacher = (teacher,)
        self.config = config
        self.layers: dict[str, tuple[int, ...]] = {}
        if config.hidden:
            self.layers = layer_map(student, teacher, config.towers, config.retained)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Run the student and, unless only the contrastive loss counts, the teacher."""
        config = self.config
        own = outputs_of(self.student, batch, self.layers)
        terms: dict[str, Tensor] = {}
        if config.itc:
            terms["itc"] = config.itc * matching_loss(own.logits, _labels(batch), own.bias)
        if not (config.sim or config.feat or config.hidden):
            return terms
        other = self._taught(batch)
        if config.sim:
            terms["sim"] = config.sim * losses.similarity_loss(own.logits, other.logits)
        if config.feat:
            pairs = [(own.features[tower], other.features[tower]) for tower in config.towers]
            terms["feat"] = config.feat * losses.feature_loss(_alike("feat", pairs))
        if config.hidden:
            towers = [
                _alike(
                    "hidden",
                    [
                        (state, other.hidden[tower][layer])
                        for state, layer in zip(own.hidden[tower], layers, strict=True)
                    ],
                )
                for tower, layers in self.layers.items()
            ]
            terms["hidden"] = config.hidden * losses.hidden_loss(towers)
        return terms

    @torch.no_grad()
    def _taught(self, batch: TrainBatch) -> Outputs:
        (teacher,) = self._teacher
        device = batch.images.device.type
        with ExitStack() as stack:
            stack.enter_context(evaluating(teacher))
            if self.config.teacher_amp:
                stack.enter_context(torch.autocast(device, torch.bfloat16))
            else:
                stack.enter_context(torch.autocast(device, enabled=False))
            return outputs_of(teacher, batch, self.layers)


def _labels(batch: TrainBatch) -> Tensor | None:
    return None if batch.labels is None else gather_rows(batch.labels)


def _alike(term: str, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    for own, other in pairs:
        if own.shape != other.shape:
            raise ValueError(
                f"{term}: the student gives {tuple(own.shape)} and the teacher {tuple(other.shape)}; widths "
                f"must be equal, or set {term}=0"
            )
    return pairs
