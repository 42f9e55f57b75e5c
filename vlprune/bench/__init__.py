"""The benchmark suite: every operator and whole towers beside their peers, and comparisons of versions."""

from .against import against
from .case import OURS, Case, Work
from .checkout import Tree, this_tree, tree_of
from .compare import changes_table, compare_records, differences
from .crossover import Crossover, crossovers
from .noise import Change
from .runner import FORMAT, VERSION, run_bench
from .suites import Selection, cases
from .text import bench_conditions, bench_table

__all__ = [
    "FORMAT",
    "OURS",
    "VERSION",
    "Case",
    "Change",
    "Crossover",
    "Selection",
    "Tree",
    "Work",
    "against",
    "bench_conditions",
    "bench_table",
    "cases",
    "changes_table",
    "compare_records",
    "crossovers",
    "differences",
    "run_bench",
    "this_tree",
    "tree_of",
]
