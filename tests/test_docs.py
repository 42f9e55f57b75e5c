"""README and docs/ say what is there: links, names, commands, files, variables, versions."""

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import pytest

import vlprune
from benchmarks.documented import ROOT, documents
from vlprune.cli.main import build_parser

PAGES = [*documents(), ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


@PAGE
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@PAGE
def test_names_of_the_package_exist(page):
    for dotted in set(re.findall(r"\bvlprune((?:\.[A-Za-z_]\w*)+)\b(?!/)", page.read_text())):
        names = dotted.strip(".").split(".")
        if names[0] in ("egg", "json"):
            continue
        value = vlprune
        for name in names:
            if not hasattr(value, name):
                importlib.import_module(f"{value.__name__}.{name}")
            value = getattr(value, name)


@PAGE
def test_files_that_are_named_exist(page):
    # `name.json` alone is a result; a path starts at the root
    known = {path.name for path in ROOT.rglob("benchmarks/results/*/*.json")}
    text = FENCE.sub("", page.read_text())
    for name in re.findall(r"`([\w./-]+\.(?:py|json|md|cuh?|cpp|h|inl))`", text):
        there = (ROOT / name).exists() or (ROOT / "vlprune" / name).exists() or name in known
        inside = any(ROOT.glob(f"{folder}/**/{name}") for folder in ("csrc", "kernels", "vlprune", "tests"))
        assert there or inside or name in ("model.safetensors", "config.json", "open_clip_config.json"), name


def commands(page):
    """Every `vlprune ...` of a page: lines of shell blocks, and whole code spans."""
    text = page.read_text()
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`((?:vlprune|--)[^`]+)`", FENCE.sub("", text))
    return [line.split("#")[0] for line in [*lines, *spans] if re.match(r"vlprune [a-z]", line)]


@PAGE
def test_commands_have_these_options(page):
    parser = build_parser()
    (sub,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands(page):
        _, name, *words = shlex.split(re.sub(r"[\[\]]", " ", command))
        assert name in sub.choices, command
        options = {word for word in words if word.startswith("--")}
        assert options <= set(sub.choices[name]._option_string_actions), command


def test_every_option_mentioned_alone_is_one():
    parser = build_parser()
    (sub,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = {option for command in sub.choices.values() for option in command._option_string_actions}
    readme = FENCE.sub("", (ROOT / "README.md").read_text())
    for span in re.findall(r"`(--[^`]+)`", readme):
        assert set(re.findall(r"--[a-z-]+", span)) <= known, span


@PAGE
def test_python_blocks_are_python(page):
    for text in blocks(page, "python"):
        compile(re.sub(r"^   (?=\S| )", "", text, flags=re.MULTILINE), str(page), "exec")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_result_file_can_be_reproduced_and_is_there():
    text = (ROOT / "docs" / "reproducing.md").read_text()
    named = set(re.findall(r"^\| (.+?) \|", text, re.MULTILINE)[1:])
    named = {name for cell in named for name in re.findall(r"`([\w.-]+\.(?:json|svg))`", cell)}
    there = {path.name for path in (ROOT / "benchmarks" / "results").rglob("*.*") if path.suffix != ".html"}
    assert named == there


def test_results_say_where_they_are_from():
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        machine = json.loads(path.read_text())["machine"]
        assert machine.keys() >= {"cpu", "threads", "torch", "vlprune", "commit"}, path.name


def test_every_environment_variable_is_in_the_concepts():
    sources = [*(ROOT / "vlprune").rglob("*.py"), *(ROOT / "csrc").rglob("*.c*"), ROOT / "setup.py"]
    read = r"(?:environ\.get\(|environ\[|getenv\(|os\.environ.*)[\"'](VLPRUNE_[A-Z_]+)"
    used = {name for path in sources if path.is_file() for name in re.findall(read, path.read_text())}
    shown = set(re.findall(r"`(VLPRUNE_[A-Z_]+)`", (ROOT / "docs" / "concepts.md").read_text()))
    assert used <= shown
    assert shown - used <= {"VLPRUNE_DATA", "VLPRUNE_NVCC_JOBS"}  # of the tests, and of CMake


def test_the_citation_has_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", text, re.MULTILINE)[1] == vlprune.__version__


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc is not installed")
def test_the_api_reference_has_every_public_name(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    arguments = shlex.split(re.search(r"-m pdoc (.+)$", makefile, re.MULTILINE)[1])
    arguments[arguments.index("-o") + 1] = str(tmp_path)
    subprocess.run([sys.executable, "-m", "pdoc", *arguments], cwd=ROOT, check=True)
    page = (tmp_path / "vlprune.html").read_text()
    assert [
        name for name in vlprune.__all__ if f'id="{name}"' not in page and f"vlprune/{name}.html" not in page
    ] == []


def test_make_docs_is_there():
    assert (ROOT / "Makefile").read_text().count("-m pdoc") == 1
