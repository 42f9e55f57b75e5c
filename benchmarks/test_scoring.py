"""The operators that prune and pack, beside the procedures published with Wanda and their definitions."""

OPS = ("column_sumsq", "wanda_mask", "wanda_pack24", "pack24", "unpack24")


def test_scoring(run_case, case, name):
    run_case(case, name)
