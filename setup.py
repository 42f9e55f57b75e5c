"""Builds the native extension with CMake; everything declarative is in pyproject.toml."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

# Where pip installs, it sees to that itself; older ones fail on pyproject.toml's license without saying so.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"vlprune: setuptools 77 or later is needed to build, here is {setuptools.__version__}")

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class CMakeBuild(build_ext):
    """Configure and build the CMake project, leaving vlprune/_C and _C_cuda where setuptools expects them."""

    def build_extension(self, ext: Extension) -> None:
        """Build every module of CMakeLists.txt; they all land beside `ext`."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        (target / f"_C_cuda{SUFFIX}").unlink(missing_ok=True)  # an earlier one, not wanted this time perhaps
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVLPRUNE_CUDA={cuda()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        jobs = [] if self.parallel is None else ["-j", str(self.parallel)]
        for command in (configure, ["cmake", "--build", str(build), *jobs]):
            if subprocess.run(command).returncode:
                raise CompileError("CMake could not build vlprune's native extension; it says why above")

    def copy_extensions_to_source(self) -> None:
        """Copy every module that was built: setuptools itself knows of `vlprune._C` alone."""
        package = Path(self.get_finalized_command("build_py").get_package_dir("vlprune"))
        for module in (Path(self.build_lib) / "vlprune").glob(f"_C*{SUFFIX}"):
            self.copy_file(str(module), str(package / module.name))


def cuda() -> str:
    """Whether to build vlprune/_C_cuda, as csrc/cuda/toolkit.cmake names it."""
    asked = os.environ.get("VLPRUNE_CUDA", "")
    names = {"": "AUTO", "0": "OFF", "1": "ON"}
    if asked not in names:
        raise ValueError(f"VLPRUNE_CUDA: expected 0, 1 or nothing, got {asked!r}")
    return names[asked]


def version() -> str:
    """`__version__` of vlprune/_version.py, read without importing the package (that needs torch)."""
    for node in ast.parse((ROOT / "vlprune" / "_version.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("vlprune/_version.py assigns no __version__")


setup(
    version=version(),
    # Namespace packages, because kernels/ (reached through the link vlprune/kernels) has no __init__.py: at
    # the top level it would shadow Hugging Face's package of that name.
    packages=find_namespace_packages(include=["vlprune", "vlprune.*"]),
    package_data={
        "vlprune": ["py.typed", "*.pyi"],
        "vlprune.demo": ["*.safetensors", "*.json", "*.txt"],
        "vlprune.report": ["*.html", "*.svg", "*.css"],
    },
    include_package_data=False,
    ext_modules=[Extension("vlprune._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
