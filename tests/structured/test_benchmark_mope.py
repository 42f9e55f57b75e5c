"""The benchmark of module pruning errors: which errors each criterion chooses by."""

from argparse import Namespace

from models.zoo import build

from benchmarks import mope

from .cases import pair_data


def test_errors_of_one_criterion_are_not_those_of_another(tmp_path):
    model = build("clip")
    data = pair_data(model, 8)

    def chosen(criteria):
        args = Namespace(
            out=tmp_path / f"{criteria[0]}.json", criteria=criteria, kinds=["heads"], towers=["visual"],
            remove=[0.5], samples=8, batch_size=4, groups=2, metric="retrieval",
        )  # fmt: skip
        lists = []
        record = {"errors": {}, "rows": {}}
        mope.run_seed(model, data, lambda _, kept: lists.append(kept) or 0.0, 0, record, args)
        return dict(zip(criteria, lists, strict=True))

    assert chosen(["random", "mope"]) == chosen(["mope", "random"])
