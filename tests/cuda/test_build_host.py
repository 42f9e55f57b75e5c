"""The host's part of both architectures on a machine without a driver: it answers, whatever it is asked."""

import re

import pytest
from build_tools import CSRC, ROOT, cuda_headers, cxx, run


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(architecture, config, tokens, out, in, dtype, reason, workspace, code) of all that host.cpp asks."""
    program = tmp_path_factory.mktemp("host") / "host"
    configs = re.findall(r"^Instance (\w+)\(\);", (CSRC / "cuda/linear24_sm90.h").read_text(), re.MULTILINE)
    sources = [CSRC / "cuda/linear24_sm80.cpp", CSRC / "cuda/linear24_sm90.cpp", ROOT / "tests/cuda/host.cpp"]
    each = "-DCONFIGS=" + " ".join(f"CONFIG({name})" for name in configs)
    run([cxx(), "-std=c++17", "-O1", "-w", each, f"-I{CSRC}", *cuda_headers(), *sources, "-o", program])
    lines = run([program], text=True).stdout.splitlines()
    fields = (line.split("|") for line in lines)
    return [(f[0], *map(int, f[1:6]), f[6], *map(int, f[7:])) for f in fields]


def test_what_cannot_run_has_a_reason_no_workspace_and_an_error(answers):
    for architecture, config, tokens, out, inputs, dtype, reason, workspace, code in answers:
        fits = dtype in ((3, 4) if architecture == "sm90_scaled" else (1, 2))
        possible = tokens in (1, 50) and out == 768 and inputs == 768 and fits and 0 <= config < 14
        if possible and not reason:
            assert code == 0
        else:
            assert reason, (architecture, config, tokens, out, inputs, dtype)
            assert (workspace, code) == (0, 1)


@pytest.mark.parametrize(("architecture", "configs"), [("sm80", 14), ("sm90", 9), ("sm90_scaled", 4)])
def test_every_config_runs_what_is_possible_and_no_other_does(answers, architecture, configs):
    dtype = 3 if architecture == "sm90_scaled" else 1
    asked = [a for a in answers if a[0] == architecture and a[2:6] == (50, 768, 768, dtype)]
    reasons = {config: reason for _, config, *_, reason, _, _ in asked}
    assert {config for config, reason in reasons.items() if not reason} == set(range(configs))
    assert reasons[-1] == reasons[configs] == reasons[1000000] == "there is no such config"


def test_only_configs_in_parts_have_a_workspace_on_sm80(answers):
    sizes = {a[1]: a[7] for a in answers if a[0] == "sm80" and a[2:6] == (50, 768, 768, 1)}
    # 768 x 50 in tiles of 128 x 64, 12 stages in 6 parts of two: counters, then sums of 4 bytes.
    assert sizes[10] == 4096 + 6 * 6 * 128 * 64 * 4
    assert all(sizes[config] == 0 for config in range(8))
    assert all(sizes[config] > 0 for config in range(8, 14))
