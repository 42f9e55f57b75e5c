"""What setup.py makes of the modules that CMake builds; CMake itself is played by a script."""

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from build_tools import ROOT

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# Makes what it is told to where -DCMAKE_LIBRARY_OUTPUT_DIRECTORY says, and writes down how it was called.
CMAKE = f"""#!{sys.executable}
import os, pathlib, sys
place = [a.split("=")[1] for a in sys.argv if a.startswith("-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=")]
pathlib.Path("called").open("a").write(" ".join(sys.argv[1:]) + "\\n")
for name in os.environ["MODULES"].split() if place else ():
    target = pathlib.Path(place[0])
    target.mkdir(parents=True, exist_ok=True)
    (target / (name + "{SUFFIX}")).write_text(os.environ["MODULES"])
sys.exit(int(os.environ.get("STATUS", 0)))
"""


@pytest.fixture
def build(tmp_path):
    """setup.py in a tree with nothing to compile: build(command, modules) gives what ran."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    package = tmp_path / "vlprune"
    package.mkdir()
    shutil.copy(ROOT / "vlprune/_version.py", package)
    for name in ("__init__.py", "_C.pyi", "_C_cuda.pyi"):
        (package / name).write_text("")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "cmake").write_text(CMAKE)
    (programs / "cmake").chmod(0o755)

    def run(*command, modules, status=0, **environment):
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **environment, "PATH": path, "MODULES": modules, "STATUS": str(status)}
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    run.folder = tmp_path
    return run


def modules_in(folder):
    return {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")}


def test_built_in_place_all_modules_lie_beside_the_package(build):
    done = build("build_ext", "--inplace", modules="_C _C_cuda", VLPRUNE_CUDA="1")
    assert done.returncode == 0, done.stderr
    assert modules_in(build.folder / "vlprune") == {"_C", "_C_cuda"}
    assert "-DVLPRUNE_CUDA=ON" in (build.folder / "called").read_text()


def test_a_package_has_no_module_of_an_earlier_build(build):
    for modules in ("_C _C_cuda", "_C"):
        done = build("build", "--build-lib", "made", modules=modules)
        assert done.returncode == 0, done.stderr
        assert modules_in(build.folder / "made/vlprune") == set(modules.split())
    assert (build.folder / "made/vlprune/_C_cuda.pyi").exists()


def test_a_build_that_fails_says_one_thing_and_copies_nothing(build):
    done = build("build_ext", "--inplace", modules="_C", status=1)
    assert done.returncode != 0
    assert "CMake could not build" in done.stderr
    assert "Traceback" not in done.stderr
    assert modules_in(build.folder / "vlprune") == set()


def test_another_wish_than_0_or_1_is_refused(build):
    done = build("build_ext", "--inplace", modules="_C", VLPRUNE_CUDA="yes")
    assert "VLPRUNE_CUDA: expected 0, 1 or nothing, got 'yes'" in done.stderr
    assert not (build.folder / "called").exists()


def test_an_old_setuptools_is_named(build):
    old = build.folder / "old" / "setuptools"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("__version__ = '65.5.0'")
    done = build("build_ext", "--inplace", modules="_C", PYTHONPATH=str(old.parent))
    assert done.stderr == "vlprune: setuptools 77 or later is needed to build, here is 65.5.0\n"
    assert done.returncode == 1
