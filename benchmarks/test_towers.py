"""Whole towers, dense and with packed layers where they win."""

OPS = ("tower",)


def test_tower(run_case, case, name):
    run_case(case, name)
