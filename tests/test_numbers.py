"""Numbers in the README and in docs/ are those of committed result files, as precise as they are printed."""

import pytest

from benchmarks import documented


@pytest.mark.parametrize(
    "path", documented.documents(), ids=lambda path: str(path.relative_to(documented.ROOT))
)
def test_every_number_is_in_a_result_file(path):
    assert documented.problems(path) == []


def values(**known):
    return lambda expression: known[expression]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("<!-- = a -->1.80x", 1.8349, "<!-- = a -->1.83x"),
        ("<!-- = a -->1.8x", 1.85001, "<!-- = a -->1.9x"),
        ("<!-- = a -->17 MB", 18.4, "<!-- = a -->18 MB"),
        ("<!-- = a -->2,310 weights", 12310, "<!-- = a -->12,310 weights"),
        ("<!-- = a -->+0.5 points", 0.25, "<!-- = a -->+0.2 points"),
        ("<!-- = a -->-0.5, then 3.0x", -0.75, "<!-- = a -->-0.8, then 3.0x"),
    ],
)
def test_a_number_takes_the_value_and_keeps_its_decimals(text, value, expected):
    assert documented.renewed(text, values(a=value)) == expected + "\n"


TABLE = "| a |\n| --- |\n| 1.5x |"
FENCE = "```\nspeed 1.5x\n```"


@pytest.mark.parametrize(
    ("block", "new", "expected"),
    [
        (TABLE, "| b |\n| --- |\n| 2.5x |\n| 3.5x |", "| b |\n| --- |\n| 2.5x |\n| 3.5x |"),
        (FENCE, "speed 2.5x\n\nand 3", "```\nspeed 2.5x\n\nand 3\n```"),
        ("", "| b |", "| b |"),
    ],
    ids=["table", "fence", "nothing yet"],
)
def test_a_block_is_exchanged_and_what_surrounds_it_stays(block, new, expected):
    page = "before\n\n<!-- table: a -->\n{}\n\nafter\n"
    text = page.format(block) if block else page.replace("{}\n", "")
    assert documented.renewed(text, values(a=new)) == page.format(expected)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("it is 1.80x as fast", ["1.80"]),
        ("half the time, 12 ms", ["12"]),
        ("| 768 | 3x |", ["3"]),
        ("97 % of it, or 0.5", ["97", "0.5"]),
        ("`--sparsity 0.5` of 4096 x 4096, 64 tokens", []),
        ("arXiv 2306.11695, section 3.2, torch 2.15, Apache-2.0, [a](b-1.5.md)", []),
        ("<!-- = a -->1.80x and <!-- = b -->5 %", []),
        ("sm_90a, 2:4, ViT-B/32, 16 bits", []),
    ],
)
def test_a_number_without_a_source_is_found(line, found):
    assert [entry.split(" in: ")[0] for entry in documented.unnamed(line)] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<!-- given: arithmetic -->\n| 1.5x |\n\n2.5x\n", ["2.5"]),
        ("```python\nx = 0.5\n```\n0.25\n", ["0.25"]),
        ("```\nspeed 1.5x\n```\n", ["1.5"]),
    ],
    ids=["a block that says why", "code", "output"],
)
def test_blocks_without_measurements_say_so(text, found):
    assert [entry.split(" in: ")[0] for entry in documented.unnamed(text)] == found


def test_a_wrong_number_and_a_lost_line_are_problems(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- = 1 + 1 -->2.0x\n")
    assert documented.problems(path) == []
    path.write_text("<!-- = 1 + 1 -->2.1x\n")
    assert "2.1x" in documented.problems(path)[0]
    path.write_text("<!-- table: 2 * 'a\\n' -->\na\n")
    assert "lines are missing" in documented.problems(path)[0]
