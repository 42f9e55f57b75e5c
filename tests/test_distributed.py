"""Shares of work, and jobs of two and three real processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vlprune
from vlprune import demo, distributed
from vlprune.distributed import own_share
from vlprune.structured import module_pruning_errors

ROOT = Path(__file__).parent.parent


@pytest.fixture
def of_ranks(monkeypatch):
    """A function that calls another one as each of so many ranks."""

    def each(count, function):
        monkeypatch.setattr(distributed, "world_size", lambda: count)
        results = []
        for number in range(count):
            monkeypatch.setattr(distributed, "rank", lambda number=number: number)
            results.append(function())
        return results

    return each


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("items", [0, 1, 5, 12, 100])
def test_shares_are_of_equal_length_and_make_up_the_whole(of_ranks, count, items):
    shares = of_ranks(count, lambda: own_share(range(items)))
    assert [item for share in shares for item in share] == list(range(items))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("count", [2, 3, 8])
def test_shares_cost_the_same_but_for_an_item(of_ranks, count):
    # twelve layers of 21 modules, those of the first layer the most expensive
    costs = [12 - layer for layer in range(12) for _ in range(21)]
    shares = of_ranks(count, lambda: own_share(range(len(costs)), costs))
    assert [item for share in shares for item in share] == list(range(len(costs)))
    for share in shares:
        # half an item is lost or won at both ends
        assert abs(sum(costs[i] for i in share) - sum(costs) / count) <= max(costs)


def test_a_lone_process_does_everything():
    assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert own_share("abc") == list("abc")
    assert distributed.gather("x") == ["x"]
    with pytest.raises(KeyError, match="own"):
        distributed.on_all_ranks(lambda: {}["own"])


START = """
import json, os, signal, sys
import torch
import torch.distributed as dist
import vlprune
from vlprune import demo, distributed
from vlprune.evaluate import embed_images, embed_texts
from vlprune.structured import module_pruning_errors

torch.set_num_threads(1)
if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank = distributed.rank()
model, preprocess, tokenizer = demo.load()
data = vlprune.load_data("demo:train:22", preprocess, tokenizer)
"""

END = """
if "RANK" in os.environ:
    dist.destroy_process_group()
    # a thread of gloo's that outlives its group aborts the process now and then, as the interpreter ends
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/comm") as file:
                name = file.read()
        except OSError:
            continue  # ended meanwhile
        assert "gloo" not in name, name
"""


def launch(folder, count, body, *arguments):
    """Run a script in so many processes under torchrun, or in one without it."""
    script = folder / "job.py"
    script.write_text(START + body + END)
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    return subprocess.run(
        [sys.executable, *run, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(folder, count):
    return [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(count)]


JOB = """
if rank == 1:
    sys.stderr = open("stderr1.txt", "w")

def own(model, data):
    return vlprune.evaluate(model, data, batch_size=8).primary

errors = module_pruning_errors(model, data, groups=2, batch_size=4, progress=True, resume="kept.json")
by_function = module_pruning_errors(model, data, ["layers"], own)
images, index = embed_images(model, data, batch_size=4, progress=True)
texts = embed_texts(model, [text for own in data.captions for text in own], tokenizer, batch_size=4)
with distributed.alone():
    on_one = vlprune.evaluate(model, data, batch_size=4).to_dict() if rank == 0 else None
found = {
    "errors": [[e.tower, e.layer, e.kind, e.index, e.error] for e in errors],
    "by_function": [e.error for e in by_function],
    "metrics": vlprune.evaluate(model, data, batch_size=4).to_dict(),
    "on one": on_one,
    "images": images.tolist(),
    "index": index,
    "texts": texts.tolist(),
}
with open(f"result{rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_ranks_return_what_one_process_does(tmp_path):
    folders = {count: tmp_path / str(count) for count in (1, 2, 3)}
    for count, folder in folders.items():
        folder.mkdir()
        done = launch(folder, count, JOB)
        assert done.returncode == 0, done.stderr
    (one,) = results(folders[1], 1)
    assert one["on one"] == one["metrics"]
    assert len({error for *_, error in one["errors"]}) > 3
    for count in (2, 3):
        for rank, found in enumerate(results(folders[count], count)):
            assert found.pop("on one") == (one["metrics"] if rank == 0 else None)
            assert found == {key: value for key, value in one.items() if key != "on one"}
        # the others' files are gone, the scores of all are in the first's
        kept = [path.name for path in folders[count].iterdir() if path.name.startswith("kept")]
        assert kept == ["kept.json"]
        (scores,) = json.loads((folders[count] / "kept.json").read_text())["jobs"].values()
        assert len(scores) == len(one["errors"])
        assert not (folders[count] / "stderr1.txt").read_text()


LATE = """
import os
import torch.distributed as dist
dist.init_process_group("gloo")
import vlprune
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted under /proc")
def test_a_group_made_before_the_import_is_let_go_too(tmp_path):
    job = tmp_path / "late.py"
    job.write_text(LATE + END)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(job)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *run], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


BROKEN = """
for place in (5, 13):
    class Broken:
        name = f"broken {place}"
        def open(self):
            raise OSError("broken on purpose")
    data.images[place] = Broken()
data._problems.on_error = "skip"
images, index = embed_images(model, data, batch_size=4)
metrics = vlprune.evaluate(model, data, batch_size=4)
with open(f"result{rank}.json", "w") as file:
    json.dump([images.tolist(), index, metrics.to_dict(), data.skipped], file)
"""


@pytest.mark.slow
def test_images_that_cannot_be_decoded_move_the_others_as_in_one_process(tmp_path):
    found = {}
    for count in (1, 2):
        done = launch(tmp_path, count, BROKEN)
        assert done.returncode == 0, done.stderr
        found[count] = results(tmp_path, count)
    assert found[2] == 2 * found[1]
    assert found[1][0][1] == [i for i in range(22) if i not in (5, 13)]


FAILING = """
def fails(model, data):
    if distributed.is_first() or not calls:
        calls.append(1)
        return vlprune.evaluate(model, data.subset(4)).primary
    raise KeyError("out of luck")

calls = []
try:
    module_pruning_errors(model, data, ["layers"], fails)
except Exception as error:
    with open(f"result{rank}.json", "w") as file:
        json.dump([type(error).__name__, str(error)], file)
"""


@pytest.mark.slow
def test_a_failure_on_one_rank_is_an_error_on_all(tmp_path):
    done = launch(tmp_path, 2, FAILING)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path, 2) == [
        ["RuntimeError", "rank 1 of 2 failed: KeyError: 'out of luck'"],
        ["KeyError", "'out of luck'"],
    ]


OTHER = """
with torch.no_grad():
    model.visual.proj.mul_(1.0 - 2.0 * rank)
module_pruning_errors(model, data, ["layers"])
"""


@pytest.mark.slow
def test_ranks_with_different_models_are_refused(tmp_path):
    done = launch(tmp_path, 2, OTHER)
    assert done.returncode != 0
    assert "ValueError: model: expected the same model and data on every rank, got full scores" in done.stderr


KILLED = """
calls = []

def own(model, data):
    if rank_of_job == 1 and len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return vlprune.evaluate(model, data).primary

rank_of_job = rank
own.__module__ = "mine"
found = module_pruning_errors(model, data, ["layers"], own, resume="kept.json")
with open(f"result{rank}.json", "w") as file:
    json.dump([len(calls), [e.error for e in found]], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2], ids=["by one process", "by two"])
def test_what_a_killed_rank_had_is_not_done_again(tmp_path, count):
    killed = launch(tmp_path, 2, KILLED, 3)
    assert killed.returncode != 0
    assert not list(tmp_path.glob("result*"))
    (jobs,) = json.loads((tmp_path / "kept.json.rank1").read_text())["jobs"].values()
    assert len(jobs) == 2
    again = launch(tmp_path, count, KILLED, -1)
    assert again.returncode == 0, again.stderr
    found = results(tmp_path, count)
    model, preprocess, tokenizer = demo.load()
    data = vlprune.load_data("demo:train:22", preprocess, tokenizer)
    expected = [e.error for e in module_pruning_errors(model, data, ["layers"])]
    assert all(errors == expected for _, errors in found)
    # the full model on each rank, and of eight layers at most the six that were not in the killed one's file
    assert sum(calls for calls, _ in found) - count <= 6
    assert sorted(path.name for path in tmp_path.glob("kept*")) == ["kept.json"]


CHOOSING = """
from vlprune import measure
from vlprune.structured import StructuredConfig, compact, compact_
from vlprune.measure import Timing

timed, sorted_by = [], compact.rewire_

def clock(candidates, **_):
    # on the second rank everything takes as long as everything else
    timed.append(1)
    known = {"visual": 10.0, "visual rest": 1.0}
    times = {name: known.get(name, 9.0 / (1 + 0.3 * i)) for i, name in enumerate(candidates)}
    return {name: Timing.of([1.0 if rank else time]) for name, time in times.items()}

def losses(model, batch):
    # and its gradients are others
    return (1 + rank) ** 2 * (model.encode_image(batch.images)[:, rank:] ** 3).sum()

measure.compare = clock
compact.rewire_ = lambda model, data, loss, **options: sorted_by(model, data, loss=losses, **options)
config = StructuredConfig(target_speedup=1.2, tower="visual", samples=8, batch_size=4, groups=2)
report = compact_(model, config, data, progress=False)
weights = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
with open(f"result{rank}.json", "w") as file:
    json.dump([report.to_dict(), weights, len(timed)], file)
"""


@pytest.mark.slow
def test_ranks_choose_by_the_first_ones_clock_and_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    done = launch(tmp_path, 2, CHOOSING)
    assert done.returncode == 0, done.stderr
    (report, weights, timed), (other, others, none) = results(tmp_path, 2)
    assert report == other
    assert weights == others
    assert timed > none == 0
    assert report["parameters"][1] < report["parameters"][0]
