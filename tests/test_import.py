"""What importing the package may and may not do, each looked at in a fresh interpreter."""

import subprocess
import sys

import pytest

HEAVY = (
    "open_clip", "timm", "transformers", "matplotlib", "torchvision", "jinja2", "scipy", "triton.compiler",
)  # fmt: skip


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    code = f"import sys, torch, vlprune; print([m for m in {HEAVY!r} if m in sys.modules])"
    before = python(f"import sys, torch; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert python(code) == before


def test_import_touches_no_gpu():
    assert python("import vlprune, torch; print(torch.cuda.is_initialized())") == "False\n"


def test_import_alone_registers_the_operators():
    code = (
        "import torch, vlprune; w = torch.ones(2, 8); w[:, ::2] = 0; "
        "v, m = torch.ops.vlprune.pack24(w); print(torch.equal(torch.ops.vlprune.unpack24(v, m), w))"
    )
    assert python(code) == "True\n"


@pytest.mark.parametrize(
    "name",
    ["prune_", "sparsify_", "save_pretrained", "from_pretrained", "load_data", "evaluate", "masks",
     "apply_masks_", "split_attention_", "merge_attention_", "backends", "why_not", "WandaConfig",
     "MagnitudeConfig", "SparseGPTConfig", "RIAConfig", "Uniform", "PerTower", "PerLayer", "ECoFLaP", "OWL",
     "AttentionMask", "Modality", "ATV", "Keep", "StructuredConfig", "compact_", "rewire_",
     "module_pruning_errors"],
)  # fmt: skip
def test_public_names(name):
    import vlprune

    assert name in vlprune.__all__
    assert hasattr(vlprune, name)


def test_top_level_kernels_shadows_no_other_package():
    """transformers imports a package called `kernels`; ours must stay below `vlprune`."""
    code = "import vlprune, importlib.util as u; print(u.find_spec('kernels'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "vlprune" not in done.stdout
