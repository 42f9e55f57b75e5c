"""What a student is trained by: the task, and how far it is from its teacher; all in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["feature_loss", "hidden_loss", "kl_loss", "matching_loss", "similarity_loss"]


def matching_loss(logits: Tensor, labels: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Loss of finding the text of each image, and of each text its image.

    The mean of both cross-entropies (CLIP, Radford et al. 2021) or, with `bias`, the pairwise sigmoid loss
    (SigLIP, Zhai et al. 2023, arXiv 2303.15343).

    Args:
        logits: scaled similarities [images, texts].
        labels: int64 [images], the text of each image where several share one: then only images look for
            texts. None: text i belongs to image i.
        bias: a SigLIP model's, added to the logits.

    """
    logits = _wide(logits)
    own = torch.arange(len(logits), device=logits.device) if labels is None else labels
    if bias is not None:
        sign = 2 * F.one_hot(own, logits.shape[1]).to(logits.dtype) - 1
        return -F.logsigmoid(sign * (logits + _wide(bias))).sum() / len(logits)
    if labels is not None:
        return F.cross_entropy(logits, own)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def kl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ``KL(teacher || student)`` over rows and over columns of logits [images, texts].

    A direction is ``sum_ij p_ij (log p_ij - log q_ij) / rows``, p the teacher's softmax and q the student's,
    at temperature 1: arXiv 2404.02424, section 3.
    """
    student, teacher = _wide(student), _wide(teacher)
    return (_kl(student, teacher) + _kl(student.T, teacher.T)) / 2


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student's softmax with the teacher's, mean of rows and columns [images, texts].

    L_sim of MoPE-CLIP (arXiv 2403.07839). It differs from `kl_loss` by the teacher's entropy.
    """
    student, teacher = _wide(student), _wide(teacher)
    return (
        F.cross_entropy(student, teacher.softmax(1)) + F.cross_entropy(student.T, teacher.T.softmax(1))
    ) / 2


def feature_loss(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Half the sum, over modalities, of the mean squared difference of normalised embeddings [N, D].

    L_feat of MoPE-CLIP (arXiv 2403.07839); of one modality it is half its difference.
    """
    terms = [F.mse_loss(_wide(student), _wide(teacher)) for student, teacher in pairs]
    return torch.stack(terms).sum() / 2


def hidden_loss(towers: Iterable[Sequence[tuple[Tensor, Tensor]]]) -> Tensor:
    """Half the sum, over towers and layers, of the mean squared difference of hidden states [..., width].

    L_hidn of MoPE-CLIP (arXiv 2403.07839). Each pair is a student's layer and the teacher's that it stands
    for.
    """
    terms = [F.mse_loss(_wide(own), _wide(other)) for tower in towers for own, other in tower]
    return torch.stack(terms).sum() / 2


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
