"""How far a student is from its teacher, all in float32 or wider; the task itself is `matching_loss`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import widened

__all__ = ["feature_loss", "hidden_loss", "kl_loss", "similarity_loss"]


def kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ``KL(teacher || student)`` over rows and over columns of logits [images, texts].

    A direction is ``sum_ij p_ij (log p_ij - log q_ij) / rows``, p the teacher's softmax and q the student's,
    at temperature 1: arXiv 2404.02424, section 3.
    """
    student, teacher = widened(student), widened(teacher)
    return (_kl(student, teacher) + _kl(student.T, teacher.T)) / 2


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student's softmax with the teacher's, mean of rows and columns [images, texts].

    L_sim of MoPE-CLIP (arXiv 2403.07839). It differs from `kl_loss` by the teacher's entropy.
    """
    student, teacher = widened(student), widened(teacher)
    return (
        F.cross_entropy(student, teacher.softmax(1)) + F.cross_entropy(student.T, teacher.T.softmax(1))
    ) / 2


def feature_loss(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Half the sum, over modalities, of the mean squared difference of normalised embeddings [N, D].

    L_feat of MoPE-CLIP (arXiv 2403.07839); of one modality it is half its difference.
    """
    terms = [F.mse_loss(widened(student), widened(teacher)) for student, teacher in pairs]
    return torch.stack(terms).sum() / 2


def hidden_loss(towers: Iterable[Sequence[tuple[Tensor, Tensor]]]) -> Tensor:
    """Half the sum, over towers and layers, of the mean squared difference of hidden states [..., width].

    L_hidn of MoPE-CLIP (arXiv 2403.07839). Each pair is a student's layer and the teacher's that it stands
    for.
    """
    terms = [F.mse_loss(widened(own), widened(other)) for tower in towers for own, other in tower]
    return torch.stack(terms).sum() / 2


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
