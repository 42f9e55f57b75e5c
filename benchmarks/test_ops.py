"""The operators that run in a model, beside PyTorch's: `linear24` and `head_attention`."""

OPS = ("linear24", "head_attention")


def test_op(run_case, case, name):
    run_case(case, name)
