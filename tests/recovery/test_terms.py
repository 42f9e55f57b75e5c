"""Every term of the losses against sums written out in float64, and against finite differences."""

import math

import pytest
import torch

from vlprune.losses import matching_loss
from vlprune.recovery.losses import feature_loss, hidden_loss, kl_loss, similarity_loss


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def columns(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def cross_entropy(student, teacher):
    rows = zip(student, teacher, strict=True)
    total = [
        -p * math.log(q) for own, other in rows for q, p in zip(softmax(own), softmax(other), strict=True)
    ]
    return sum(total) / len(student)


def entropy(teacher):
    return cross_entropy(teacher, teacher)


STUDENT = torch.tensor([[2.0, -1.0, 0.5], [0.3, 1.0, -2.0]], dtype=torch.float64)
TEACHER = torch.tensor([[1.0, 0.0, 0.0], [-0.5, 2.0, 1.0]], dtype=torch.float64)


def test_similarity_loss():
    own, other = STUDENT.tolist(), TEACHER.tolist()
    expected = (cross_entropy(own, other) + cross_entropy(columns(own), columns(other))) / 2
    assert similarity_loss(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_kl_loss_has_the_teacher_first():
    own, other = STUDENT.tolist(), TEACHER.tolist()
    expected = sum(
        (cross_entropy(a, b) - entropy(b)) / 2 for a, b in ((own, other), (columns(own), columns(other)))
    )
    assert kl_loss(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)
    assert kl_loss(TEACHER, STUDENT).item() != pytest.approx(expected, rel=1e-3)
    assert kl_loss(TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-15)


def test_kl_of_two_known_distributions():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2; a column of one has no divergence
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_loss(student, teacher).item() == pytest.approx((expected + 0.0) / 2, rel=1e-12)


def test_matching_loss_of_pairs():
    logits = torch.randn(4, 4, dtype=torch.float64) * 3
    rows = logits.tolist()
    down = columns(rows)
    expected = sum(-math.log(softmax(rows[i])[i]) - math.log(softmax(down[i])[i]) for i in range(4)) / 8
    assert matching_loss(logits).item() == pytest.approx(expected, rel=1e-12)


def test_matching_loss_of_images_that_share_texts():
    labels = torch.tensor([1, 0, 1])
    rows = torch.cat([STUDENT, TEACHER[:1]])[:, :2]
    found = [softmax(row)[label] for row, label in zip(rows.tolist(), [1, 0, 1], strict=True)]
    expected = -sum(map(math.log, found)) / 3
    assert matching_loss(rows, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labels", [None, [1, 1, 0]], ids=["pairs", "labelled"])
def test_matching_loss_of_a_sigmoid_model(labels):
    logits = torch.randn(3, 3 if labels is None else 2, dtype=torch.float64) * 3
    bias = torch.tensor(-2.0, dtype=torch.float64)
    own = range(3) if labels is None else labels
    expected = 0.0
    for i, row in enumerate(logits.tolist()):
        for j, value in enumerate(row):
            sign = 1 if j == list(own)[i] else -1
            expected += math.log1p(math.exp(-sign * (value - 2))) / 3
    found = matching_loss(logits, None if labels is None else torch.tensor(labels), bias)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_feature_and_hidden_loss():
    a, b, c, d = (torch.randn(3, 5, dtype=torch.float64) for _ in range(4))

    def mse(x, y):
        return sum((x[i, j].item() - y[i, j].item()) ** 2 for i in range(3) for j in range(5)) / 15

    assert feature_loss([(a, b), (c, d)]).item() == pytest.approx((mse(a, b) + mse(c, d)) / 2, rel=1e-12)
    assert feature_loss([(a, b)]).item() == pytest.approx(mse(a, b) / 2, rel=1e-12)
    towers = [[(a, b), (a, c)], [(d, b)]]
    expected = (mse(a, b) + mse(a, c) + mse(d, b)) / 2
    assert hidden_loss(towers).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda own, other: kl_loss(own, other),
        lambda own, other: similarity_loss(own, other),
        lambda own, other: feature_loss([(own, other), (2 * own, other)]),
        lambda own, other: hidden_loss([[(own, other)], [(own * own, other)]]),
        lambda own, other: matching_loss(own @ other.T),
        lambda own, other: matching_loss(own, torch.tensor([2, 0])),
        lambda own, other: matching_loss(own @ other.T, bias=own.sum()),
    ],
    ids=["kl", "sim", "feat", "hidden", "pairs", "labelled", "sigmoid"],
)
def test_gradients_against_finite_differences(loss):
    own = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, TEACHER), (own,))


def test_half_precision_is_summed_in_float32():
    own, other = STUDENT.bfloat16(), TEACHER.bfloat16()
    for loss in (kl_loss, similarity_loss, lambda a, b: feature_loss([(a, b)])):
        found = loss(own, other)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(own.double(), other.double()).item(), rel=1e-6)
