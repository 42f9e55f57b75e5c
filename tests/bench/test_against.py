"""Two versions beside each other: trees of commits, the processes, and the command line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from bench.bench_records import bench_record, linear24_row

from vlprune.bench import Selection, Tree, against, cases, checkout, this_tree, tree_of
from vlprune.bench.against import CaseFailed, Worker
from vlprune.cli import bench as cli
from vlprune.cli import main

SMALL = Selection(tokens=(2,), dtypes=("fp32",), only=("768 -> 2304",))
ORDER = {"device": "cpu", "threads": 1, "selection": SMALL.to_dict()}


def git(folder, *arguments):
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *named, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of two commits whose native sources are the same, with a library built."""
    root = tmp_path / "repository"
    (root / "vlprune").mkdir(parents=True)
    (root / "csrc").mkdir()
    (root / "csrc" / "a.cpp").write_text("int a;")
    (root / "vlprune" / "__init__.py").write_text("version = 1")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    git(root, "tag", "one")
    (root / "vlprune" / "__init__.py").write_text("version = 2")
    git(root, "commit", "-q", "-am", "two")
    (root / "vlprune" / "_C.some.so").write_bytes(b"built")
    monkeypatch.setattr(checkout, "this_tree", lambda: Tree(root, "here"))
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path / "cache"))
    return root


def test_a_commit_is_written_out_once_with_the_library_it_shares(repository):
    tree = tree_of("one")
    assert (tree.path / "vlprune" / "__init__.py").read_text() == "version = 1"
    assert (tree.path / "vlprune" / "_C.some.so").read_bytes() == b"built"
    assert tree.label == "one"
    (tree.path / "mark").touch()
    assert (tree_of("one").path / "mark").exists()
    assert [path.name for path in tree.path.parent.iterdir()] == [tree.path.name]
    assert (repository / "vlprune" / "__init__.py").read_text() == "version = 2"


def test_other_native_sources_are_built(repository):
    (repository / "csrc" / "a.cpp").write_text("int b;")
    (repository / "setup.py").write_text("raise SystemExit('no compiler here')")
    git(repository, "add", "setup.py")
    git(repository, "commit", "-q", "-m", "three")
    said = []
    with pytest.raises(ValueError, match="cannot be built: no compiler here"):
        tree_of("HEAD", said.append)
    assert said == [said[0]]
    assert "other native sources than those built here, building" in said[0]
    # nothing half-written stays
    assert not list((repository.parent / "cache").iterdir())


def test_a_library_older_than_its_sources_is_not_passed_on(repository):
    """The sources of both are the same, but nothing says that the library was built of them."""
    os.utime(repository / "vlprune" / "_C.some.so", (1, 1))
    with pytest.raises(ValueError, match="cannot be built"):
        tree_of("one")


def test_a_folder_is_taken_as_it_is(repository):
    tree = tree_of(str(repository))
    assert tree.path == repository
    assert tree.label.startswith("one-1-g")


@pytest.mark.parametrize("spec", ["no-such-commit", "--output=x"])
def test_neither_folder_nor_commit(repository, spec):
    with pytest.raises(ValueError, match=f"expected a folder or a commit of .*, got '{spec}'"):
        tree_of(spec)


def test_a_folder_without_the_package(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with vlprune/ in it"):
        tree_of(str(tmp_path))


def test_a_worker_times_the_package_of_its_tree(tmp_path):
    """Its answers are about the tree's own operators: a copy whose linear24 is wrong is refused."""
    (name,) = [case.name for case in cases(SMALL)]
    with Worker({"tree": str(this_tree().path), **ORDER}) as worker:
        worker.ready()
        assert 0 < worker.prepare(name, True) < 60
        assert 0 < worker.burst(3) < 60
    copy = tmp_path / "vlprune"
    copy.mkdir()
    for part in (this_tree().path / "vlprune").iterdir():
        if part.name not in ("ops", "__init__.py", "bench"):
            (copy / part.name).symlink_to(part)
    (copy / "__init__.py").write_text((this_tree().path / "vlprune" / "__init__.py").read_text())
    ops = this_tree().path / "vlprune" / "ops"
    (copy / "ops").mkdir()
    for part in ops.iterdir():
        if part.name != "__init__.py":
            (copy / "ops" / part.name).symlink_to(part)
    wrong = "\n_linear24 = linear24\n\ndef linear24(*a, **k):\n    return _linear24(*a, **k) + 1\n"
    (copy / "ops" / "__init__.py").write_text((ops / "__init__.py").read_text() + wrong)
    with Worker({"tree": str(tmp_path), **ORDER}) as worker:
        worker.ready()
        with pytest.raises(CaseFailed, match="largest error"):
            worker.prepare(name, True)


def test_both_sides_are_timed_by_this_version(tmp_path):
    """A tree whose clock is broken, or changed, is timed all the same."""
    package = this_tree().path / "vlprune"
    copy = tmp_path / "vlprune"
    copy.mkdir()
    for part in package.iterdir():
        if part.name not in ("__init__.py", "measure.py"):
            (copy / part.name).symlink_to(part)
    (copy / "__init__.py").write_text((package / "__init__.py").read_text())
    broken = "\ndef compare(*_, **__):\n    raise RuntimeError('the clock of another version')\n"
    (copy / "measure.py").write_text((package / "measure.py").read_text() + broken)
    (name,) = [case.name for case in cases(SMALL)]
    with Worker({"tree": str(tmp_path), **ORDER}) as worker:
        worker.ready()
        assert 0 < worker.prepare(name, True) < 60


def test_a_tree_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "vlprune").mkdir()
    (tmp_path / "vlprune" / "__init__.py").write_text("raise RuntimeError('broken')")
    with (
        Worker({"tree": str(tmp_path), **ORDER}) as worker,
        pytest.raises(ValueError, match=r"--against: .*: RuntimeError: broken"),
    ):
        worker.ready()


def test_a_worker_that_is_gone_is_one_line():
    """Also where it left between two messages: writing to it is no broken pipe, which the command hides."""
    worker = Worker({"tree": "/nowhere", **ORDER})
    with worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(ValueError, match=r"--against: /nowhere: "):
            worker.burst(1)


@pytest.mark.parametrize("without", [0, 1])
def test_native_beside_portable_code_is_refused(monkeypatch, tmp_path, without):
    trees = Tree(tmp_path / "a", "a"), Tree(tmp_path / "b", "b")
    monkeypatch.setattr(Worker, "__init__", lambda self, order: setattr(self, "tree", order["tree"]))
    monkeypatch.setattr(Worker, "__exit__", lambda *_: None)
    monkeypatch.setattr(Worker, "ready", lambda self: self.tree != str(trees[without].path))
    with pytest.raises(ValueError, match=f"{trees[without].path}: its native extension is not built"):
        against(*trees, SMALL, repeats=3, progress=False)


@pytest.mark.slow
def test_against_itself_end_to_end():
    tree = this_tree()
    threads = torch.get_num_threads()
    (change,) = against(tree, tree, SMALL, progress=False)
    assert change.verdict in ("same", "unclear")
    assert torch.get_num_threads() == threads


@pytest.fixture
def files(tmp_path):
    old, new = bench_record(), bench_record()
    for record in (old, new):
        record["rows"] += [linear24_row(tokens, 1024, 4096, 2e-3, 1e-3) for tokens in (1, 4, 16, 50)]
    slower = new["rows"][2]
    slower["ratios"]["F.linear"]["median"] /= 1.5
    for name, record in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_compare_prints_what_changed(files, capsys):
    assert main(["bench", "--compare", str(files / "old.json"), str(files / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[-1] == "slower"
    assert lines[2].startswith("linear24 fp32 400 x 512 -> 2048 ")
    assert "12 cases: 1 slower, 0 faster" in " ".join(lines)


def test_compare_as_json_and_as_a_file(files, capsys):
    options = ["--json", "--out", str(files / "out")]
    assert main(["bench", "--compare", str(files / "old.json"), str(files / "new.json"), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in printed["cases"] if c["verdict"] == "slower"] == [
        "linear24 fp32 400 x 512 -> 2048"
    ]
    assert json.loads((files / "out" / "changes.json").read_text()) == printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "{}/old.json", "{}/none.json"], "none.json: no such file"),
        (["--compare", "{}/old.json", "{}/text.json"], "text.json is no result of vlprune bench"),
        (["--against", "a", "b", "c"], "expected one or two versions, got 3"),
        (["--compare", "{}/old.json", "{}/rows.json"], "rows.json: incomplete record, 'rows' is missing"),
        (["--compare", "{}/old.json", "{}/cuda.json"], "expected files of one device, got 'cpu' and 'cuda'"),
        (["--compare", "{}/old.json", "{}/new.json", "--out", "{}/text.json"], "text.json is a file"),
        (["--compare", "a", "b", "--full", "--only", "c"], "--full, --only: not for --compare"),
        (["--compare", "a", "b", "--repeats", "6"], "--repeats: not for --compare"),
        (["--against", ".", "--rounds", "9"], "--rounds: not for --against"),
        (["--least", "0.1"], "--least: not for a measurement"),
        (["--against", ".", "--repeats", "5"], "--repeats: expected at least 6, got 5"),
        (["--against", ".", "--out", "{}/text.json"], "text.json is a file"),
        (["--against", "no-such-commit", "--only", "linear42"], "--only: no case fits 'linear42'"),
        (["--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cpu:abc"], "--device: expected cpu, cuda or cuda:N, got 'cpu:abc'"),
        (["--device", "cpu:1"], "--device: expected cpu, cuda or cuda:N, got 'cpu:1'"),
        (["--device", "cuda:99"], "--device: cuda:99 asked for, and torch sees"),
        (["--only", "linear42"], "--only: no case fits 'linear42'"),
        (["--against", ".", "--least", "-1"], "--least: expected a fraction of at least 0, got -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(files, options, message, capsys):
    (files / "text.json").write_text("[]")
    old = bench_record()
    (files / "cuda.json").write_text(json.dumps({**old, "device": "cuda"}))
    del old["rows"]
    (files / "rows.json").write_text(json.dumps(old))
    assert main(["bench", *(option.format(files) for option in options)]) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert out == ""


def test_compare_or_against_and_not_both(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["bench", "--compare", "a", "b", "--against", "."])
    assert raised.value.code == 2
    assert "--against: not allowed with argument --compare" in capsys.readouterr().err


def test_a_failed_case_is_status_1_after_all_was_printed(monkeypatch, tmp_path, capsys):
    """Bad input is 2."""
    monkeypatch.setattr(cli, "run_bench", lambda *_, **__: bench_record())
    with pytest.raises(SystemExit, match="failed: wanda_mask fp32 2:4 8 x 8"):
        main(["bench", "--out", str(tmp_path)])
    assert "Page: " in capsys.readouterr().out
    assert (tmp_path / "bench.html").exists()


def test_command_measures_and_writes(tmp_path):
    command = [sys.executable, "-m", "vlprune", "bench", "--tokens", "2", "--rounds", "5", "--dtype", "fp32"]
    done = subprocess.run(
        [*command, "--only", "768 -> 2304", "--threads", "1", "--out", str(tmp_path / "out"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    record = json.loads(done.stdout)
    assert [row["label"] for row in record["rows"]] == ["2 x 768 -> 2304"]
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == record
    assert (tmp_path / "out" / "bench.html").read_text().startswith("<!doctype html>")


def test_report_draws_a_benchmark_again(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_record()))
    assert main(["report", str(path)]) == 0
    assert "Where 2:4 pays, fp32" in capsys.readouterr().out
    assert "Where 2:4 pays" in (tmp_path / "bench.html").read_text()
