"""Telling changes from noise: known scatters, simulated machines, and two result files."""

import math
import random
import statistics

import pytest

from vlprune.bench import changes_table, compare_records, differences
from vlprune.bench.against import REPEATS, CaseFailed, compare_sides, log_ratio
from vlprune.bench.noise import FEWEST, Change, changes, median_interval
from vlprune.measure import Timing


class Machine:
    """A simulated, noisy machine that two versions share: its clock says how long a burst takes.

    Every call is disturbed by 1 %, a third of the time another process takes up to half of the cores, the
    whole machine drifts by a fifth, and what a process lies like in memory makes another 1 %.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.busy_until = 0.0
        self.slow = 1.0

    def call(self, seconds):
        if self.now > self.busy_until:
            # a quiet spell, then a busy one, of a few hundred milliseconds each
            self.slow = 1.0 if self.slow > 1.0 else 1.0 + self.random.random()
            self.busy_until = self.now + self.random.expovariate(1 / (0.1 if self.slow > 1.0 else 0.2))
        drift = 1.0 + 0.1 * math.sin(self.now / 3.0)
        took = seconds * drift * self.slow * math.exp(self.random.gauss(0.0, 0.01))
        self.now += took
        return took


class SimulatedSide:
    def __init__(self, machine, slower):
        self.machine, self.slower = machine, slower
        self.bias = {}
        self.case = None

    def prepare(self, case, check):
        self.case = case
        self.bias.setdefault(case, math.exp(self.machine.random.gauss(0.0, 0.01)))
        return self.burst(3)

    def burst(self, calls):
        own = 1e-3 * self.bias[self.case] * self.slower.get(self.case, 1.0)
        return Timing.of([self.machine.call(own) for _ in range(calls)]).p20


NAMES = ("a", "b", "c", "d")


def simulated(seed, slower):
    machine = Machine(seed)
    found = compare_sides(
        lambda _: (SimulatedSide(machine, {}), SimulatedSide(machine, slower)), NAMES, progress=False
    )
    return {change.name: change for change in found}


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_tenth_is_flagged_and_nothing_else(seed):
    found = simulated(seed, {"b": 1.1})
    assert {name: c.verdict for name, c in found.items() if c.verdict in ("slower", "faster")} == {
        "b": "slower"
    }
    # what was planted lies in the interval: that is what an interval says
    assert found["b"].low < 1.1 < found["b"].high


@pytest.mark.parametrize("seed", range(10))
def test_the_same_version_twice_is_not_flagged(seed):
    assert not [c for c in simulated(100 + seed, {}).values() if c.verdict in ("slower", "faster")]


def test_a_gain_of_a_tenth_is_faster():
    assert simulated(3, {"c": 1 / 1.1})["c"].verdict == "faster"


def test_turns_alternate_and_are_long_enough():
    turns = []

    class Side:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def prepare(self, case, check):
            return self.seconds

        def burst(self, calls):
            turns.append((self.name, calls))
            return self.seconds

    assert log_ratio(Side("old", 1e-3), Side("new", 2e-3), "case", 6) == pytest.approx(math.log(2))
    assert "".join(name[0] for name, _ in turns) == "onnoonnoonno"
    # 2 ms of the faster one
    assert {calls for _, calls in turns} == {2}
    turns.clear()
    log_ratio(Side("old", 2.0), Side("new", 2.0), "case", 24)
    assert turns.count(("old", 2)) == 5


def test_a_case_that_one_version_lacks_is_left_out():
    class Side(SimulatedSide):
        def prepare(self, case, check):
            if case == "b":
                raise CaseFailed("no such operator")
            return super().prepare(case, check)

    machine, said = Machine(0), []
    found = compare_sides(
        lambda _: (Side(machine, {}), Side(machine, {})), NAMES, progress=False, say=said.append
    )
    assert [change.name for change in found] == ["a", "c", "d"]
    assert said == ["b: left out: no such operator"]


def test_interval_is_students_shared_out_between_cases():
    """One case: mean 0.05, standard deviation 0.01 of three; t with 2 degrees at 0.995 is 9.92484."""
    (change,) = changes({"a": [0.04, 0.05, 0.06]})
    half = 9.92484 * 0.01 / math.sqrt(3)
    assert math.log(change.ratio) == pytest.approx(0.05)
    assert math.log(change.high) - 0.05 == pytest.approx(half, rel=1e-5)
    assert change.verdict == "unclear"


def test_cases_of_equal_scatter_share_it():
    """Standard deviation 0.01 of three, four cases: t with 8 degrees at 1 - 0.01/8 is 4.3335."""
    found = changes({name: [0.49, 0.5, 0.51] for name in "abcd"})
    for change in found:
        assert math.log(change.high) - 0.5 == pytest.approx(4.3335 * 0.01 / math.sqrt(3), rel=1e-3)


def test_a_case_that_scatters_more_has_a_wider_interval():
    own = {"a": 0.01, "b": 0.02, "c": 0.01, "d": 0.1}
    found = changes({name: [0.5 - s, 0.5, 0.5 + s] for name, s in own.items()})
    halves = {change.name: math.log(change.high) - 0.5 for change in found}
    assert halves["a"] == pytest.approx(halves["c"])
    assert halves["a"] < halves["b"] < halves["d"]


@pytest.mark.parametrize(
    "scatters",
    [[0.01] * 60, [0.01] * 30 + [0.04] * 30, [0.01] * 40 + [0.04] * 10],
    ids=["equal", "half-four-times", "a-fifth-four-times"],
)
@pytest.mark.parametrize("repeats", [FEWEST, REPEATS])
def test_chance_alone_is_flagged_about_once_in_a_hundred_comparisons(scatters, repeats):
    """Sharing one variance flagged 14 and 21 in a hundred of the latter two."""
    draw = random.Random(0)
    flagged = 0
    for _ in range(400):
        logs = {str(i): [draw.gauss(0.0, s) for _ in range(repeats)] for i, s in enumerate(scatters)}
        flagged += any(c.verdict in ("slower", "faster") for c in changes(logs))
    # four expected of one in a hundred; more than twelve has a chance below 1 in 2,000
    assert flagged <= 12


@pytest.mark.parametrize(
    ("ratio", "bounds", "verdict"),
    [
        (1.10, (1.05, 1.15), "slower"),
        (0.90, (0.86, 0.94), "faster"),
        (1.02, (1.01, 1.03), "same"),
        (1.00, (0.98, 1.02), "same"),
        (1.05, (0.95, 1.15), "unclear"),
        (1.04, (0.99, 1.09), "unclear"),
    ],
)
def test_verdicts(ratio, bounds, verdict):
    assert Change("a", ratio, *bounds).verdict == verdict


def test_three_repeats_at_least():
    with pytest.raises(ValueError, match="expected at least 3 repeats, got 2 of a"):
        changes({"a": [0.0, 0.1]})


def record(factor, *, seed, torch="2.15.0"):
    """A result file of 20 cases: 2:4 twice as fast as its peer times `factor`, on a machine of some mood."""
    draw = random.Random(seed)
    mood = 1.0 + draw.random()
    rows = []
    for place in range(20):
        ratio = 2.0 / factor.get(place, 1.0) * math.exp(draw.gauss(0.0, 0.01))
        rows.append(
            {
                "name": f"case {place}",
                "times": {"vlprune": {"median": mood}, "dense": {"median": mood * ratio}},
                "ratios": {"dense": {"median": ratio, "samples": 9, "deviation": 0.02}},
            }
        )
    rows.append({"name": "failed", "error": "why"})
    return {"device": "cpu", "set": "quick", "machine": {"cpu": "x", "torch": torch}, "rows": rows}


def measured(draw, scatters, rounds, between=0.0):
    """A file of cases that are twice as fast as their peers, whose rounds scatter so much, in a process."""
    ratios = []
    for scatter in scatters:
        mean = math.log(2) + draw.gauss(0.0, between)
        logs = [mean + draw.gauss(0.0, scatter) for _ in range(rounds)]
        deviation = statistics.stdev(logs) if rounds > 1 else None
        ratios.append(
            {"median": math.exp(statistics.median(logs)), "samples": rounds, "deviation": deviation}
        )
    rows = [{"name": str(place), "ratios": {"dense": ratio}} for place, ratio in enumerate(ratios)]
    return {"device": "cpu", "rows": rows}


@pytest.mark.parametrize(
    ("scatters", "rounds", "between"),
    [
        ([0.02] * 24 + [0.25] * 23, 9, 0.0),
        ([0.02] * 47, 9, 0.03),
        ([0.05] * 3, 9, 0.0),
        ([0.01] * 4, 9, 0.03),
        ([0.01] * 10, 9, 0.03),
        ([0.03] * 60, 1, 0.0),
        ([0.02] * 24 + [0.25] * 23, 5, 0.0),
    ],
    ids=["mixed", "processes", "three", "four-processes", "ten-processes", "one-round", "five-rounds"],
)
def test_files_of_one_version_are_flagged_about_once_in_a_hundred(scatters, rounds, between):
    """Normal quantiles flagged 30 of 200 of the first, and 139 of the fourth."""
    draw = random.Random(0)
    flagged = 0
    for _ in range(200):
        pair = [measured(draw, scatters, rounds, between) for _ in range(2)]
        flagged += any(c.verdict in ("slower", "faster") for c in compare_records(*pair))
    # two expected of one in a hundred; more than eight has a chance below 1 in 4,000
    assert flagged <= 8


@pytest.mark.parametrize(("count", "rounds"), [(9, 9), (30, 8), (30, 1)])
def test_too_few_cases_or_rounds_are_unclear(count, rounds):
    draw = random.Random(1)
    old, new = (measured(draw, [0.01] * count, rounds) for _ in range(2))
    new["rows"][0]["ratios"]["dense"]["median"] /= 3
    found = compare_records(old, new)
    assert {change.verdict for change in found} == {"unclear"}
    lines = changes_table(found, "old", "new").splitlines()
    assert lines[2].split()[-2:] == ["unknown", "unclear"]


def test_files_of_different_devices_are_refused():
    with pytest.raises(ValueError, match="expected files of one device, got 'cpu' and 'cuda'"):
        compare_records(record({}, seed=1), {**record({}, seed=2), "device": "cuda"})


@pytest.mark.parametrize(
    ("count", "places"),
    [(5, None), (6, (0, 5)), (9, (1, 7)), (20, (5, 14)), (100, (39, 60))],
    ids=lambda value: str(value),
)
def test_interval_of_a_median(count, places):
    """The places that tables of the sign test give at 95 % (Hollander and Wolfe 1999, table A.2)."""
    values = [10.0 * value for value in range(count)]
    random.Random(0).shuffle(values)
    expected = None if places is None else tuple(10.0 * place for place in places)
    assert median_interval(values) == expected


@pytest.mark.parametrize("rounds", [5, 9, 20])
def test_equal_calls_are_seldom_faster_or_slower(rounds):
    """The 20th percentile above 1 called 39 of 100 so at five rounds, fewer the more there were."""
    draw = random.Random(0)
    called = 0
    for _ in range(1000):
        found = median_interval([math.exp(draw.gauss(0.0, 0.05)) for _ in range(rounds)])
        called += found is not None and not found[0] <= 1.0 <= found[1]
    # 50 expected at most; more than 75 has a chance below 1 in 2,000
    assert called <= 75


@pytest.mark.parametrize("seed", range(10))
def test_files_flag_what_changed_beside_its_peer(seed):
    found = compare_records(record({}, seed=seed), record({4: 1.25}, seed=1000 + seed))
    assert [c.name for c in found if c.verdict == "slower"] == ["case 4"]
    assert not [c for c in found if c.verdict == "faster"]


def test_files_of_one_run_are_the_same():
    one = record({}, seed=1)
    assert all(change.ratio == 1.0 for change in compare_records(one, one))


def test_files_without_a_common_case():
    with pytest.raises(ValueError, match="no case with a peer in common"):
        compare_records(record({}, seed=1), {"device": "cpu", "machine": {}, "rows": []})


def test_differences_are_named():
    old, new = record({}, seed=1), record({}, seed=1, torch="2.16.0")
    new["set"], old["machine"]["commit"], new["machine"]["commit"] = "full", "a", "b"
    assert differences(old, new) == ["set: quick -> full", "torch: 2.15.0 -> 2.16.0", "commit: a -> b"]


def test_table_fits_a_terminal_and_begins_with_what_changed():
    found = [Change("linear24 fp32 1600 x 1024 -> 4096 quick_gelu and more words", 1.0, 0.99, 1.01)]
    found.append(Change("b", 1.2, 1.1, 1.3))
    lines = changes_table(found, "old", "new").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("b ")
    assert lines[2].split() == ["b", "+20.0", "%", "+10.0..+30.0", "slower"]
    assert "1 slower, 0 faster, 1 the same" in " ".join(lines)


def test_repeats_are_as_the_docstring_says():
    """2 % of scatter, four cases: a change of a tenth is seen."""
    size = 0.02 * math.sqrt((REPEATS - 1) / REPEATS)
    scattered = [math.log(1.1) + size * sign for sign in (1, -1) * (REPEATS // 2)]
    assert statistics.stdev(scattered) == pytest.approx(0.02)
    found = changes({str(i): scattered for i in range(4)})
    assert {change.verdict for change in found} == {"slower"}
