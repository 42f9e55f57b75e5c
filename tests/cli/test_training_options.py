"""From options and files to how a pruned model is trained."""

import json

import pytest

from vlprune import Keep, MagnitudeConfig, SparseLoRAConfig, StructuredConfig
from vlprune.cli.configs import variants_of
from vlprune.cli.main import build_parser, main
from vlprune.cli.training import recovery_of, with_recovery
from vlprune.pipeline import Recovery, Variant
from vlprune.recovery import DistillConfig, RecoverConfig


def parsed(*args):
    return build_parser().parse_args([*map(str, args), "--out", "x"])


def recovery(*args):
    made = parsed("recover", "m", "--teacher", "t", "--data", "d", *args)
    return recovery_of(made, made.method or (None if made.training_config else "sparselora"))


def variants(*args):
    made = parsed("run", "m", *args)
    return with_recovery(variants_of(made), recovery_of(made, made.recover, "recover-"))


def test_every_option_reaches_the_config():
    assert recovery(
        "--steps", 7, "--batch-size", 16, "--lr", "3e-3", "--final-learning-rate", 0.2, "--warmup", 0.05,
        "--wd", 0.01, "--grad-clip-norm", 2, "--amp", "bf16", "--grad-checkpointing", "--ema", 0.99,
        "--seed", 4, "--save-every", 9, "--samples", 100, "--shard", "--rank", 4, "--alpha", 8,
        "--lam", 0.3, "--targets", "visual", "--ignore", "*.out_proj",
    ) == Recovery(
        "sparselora",
        RecoverConfig(
            steps=7, batch_size=16, learning_rate=3e-3, final_learning_rate=0.2, warmup=0.05,
            weight_decay=0.01, clip_norm=2, amp="bf16", checkpointing=True, ema=0.99, seed=4, save_every=9,
            samples=100, shard=True, lam=0.3,
        ),
        SparseLoRAConfig(rank=4, alpha=8, targets=("visual",), ignore=("*.out_proj",)),
    )  # fmt: skip
    assert recovery(
        "--method", "distill", "--epochs", 3, "--itc", 0, "--sim", 0, "--feat", 10, "--hidden", 2,
        "--towers", "visual", "--teacher-amp", "bf16", "--retained", "visual=0,2",
    ) == Recovery(
        "distill",
        DistillConfig(
            epochs=3, itc=0, sim=0, feat=10, hidden=2, towers=("visual",), teacher_amp="bf16",
            retained={"visual": (0, 2)},
        ),
    )  # fmt: skip


def test_a_file_says_all_of_it(tmp_path):
    file = tmp_path / "training.json"
    wanted = Recovery.from_dict({"method": "distill", "steps": 3, "feat": 1.0})
    file.write_text(json.dumps(wanted.to_dict()))
    assert recovery("--config", file) == wanted
    (_, after) = variants("--method", "magnitude", "--recover-config", file)
    assert after == Variant(MagnitudeConfig(), recovery=wanted)


def test_options_of_run_are_told_from_its_own():
    before, after = variants(
        "--method", "magnitude", "--samples", 5, "--recover", "distill", "--recover-samples", 50,
        "--recover-towers", "visual",
    )  # fmt: skip
    assert before == Variant(MagnitudeConfig(samples=5))
    assert after.before == before
    assert after.recovery.training == DistillConfig(samples=50, towers=("visual",))


def test_rows_before_and_after():
    trained = Recovery.from_dict({"method": "sparselora"})
    small = StructuredConfig(visual=Keep(heads=0.5), text=Keep(heads=0.5))
    made = variants("--heads", "0.5", "--method", "magnitude", "--recover", "sparselora")
    magnitude = MagnitudeConfig()
    assert made == [
        Variant(None, small),
        Variant(None, small, recovery=trained),
        Variant(magnitude, small, between=trained),
        Variant(magnitude, small, between=trained, recovery=trained),
    ]
    assert variants("--method", "magnitude") == [Variant(magnitude)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lr", "fast"], "--learning-rate: expected a number above 0, got 'fast'"),
        (["--rank", "0"], "--rank: expected a whole number of at least 1, got 0"),
        (["--amp", "fp8"], "--amp: expected None"),
        (["--method", "distil"], "--method: expected one of sparselora, lora, finetune, distill"),
        (["--method", "distill", "--lam", "0.1"], "--lam: belongs to sparselora and lora"),
        (["--retained", "visual"], "--retained: expected TOWER=LAYER,LAYER,..., got 'visual'"),
        (["--config", "no.json"], "no.json: no such file"),
        (["--config", "list.json"], "list.json: expected an object of settings"),
        (["--config", "bad.json"], "bad.json: RecoverConfig: unknown field 'stepz'"),
        (["--config", "bad.json", "--seed", "1"], "leave out --seed"),
        (["--clip-norm", "null"], "--clip-norm: expected a number above 0, got 'null'"),
        (["--eval", "nonsense:x"], "nonsense"),
        ([], "model: nothing was pruned"),
        (["--out", "file"], "--out: expected a folder, file is a file"),
        (["--out", "run"], "report.json is the report of something else"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.json").write_text('{"stepz": 3}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text('{"format": "vlprune-report"}')
    before = sorted(tmp_path.rglob("*"))
    base = ["recover", "demo", "--teacher", "demo", "--data", "demo:train:8"]
    assert main([*base, *([] if "--out" in args else ["--out", "x"]), *args]) == 2
    out, err = capfd.readouterr()
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_prune_says_that_it_does_not_train(tmp_path, capfd):
    file = tmp_path / "variant.json"
    trained = Variant(MagnitudeConfig(), recovery=Recovery.from_dict({}))
    file.write_text(json.dumps(trained.to_dict()))
    assert main(["prune", "demo", "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "--config: prune does not train" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recover-steps", "3"], "--recover-steps: needs --recover beside it"),
        (["--recover-data", "demo:train:8"], "--recover-data: needs --recover beside it"),
        (["--recover", "lora"], "--recover: lora fills the zeros"),
        (["--recover", "sleep"], "--recover: expected one of"),
        (["--recover", "distill", "--recover-warmup", "2"], "--recover-warmup: expected a number in [0, 1]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_run(args, message, tmp_path, capfd):
    assert main(["run", "demo", *args, "--out", str(tmp_path / "out")]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
