"""Trainings of the comparison: tuned, kept, resumed, and reported if they fail."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from studies.comparison.data import Sets
from studies.comparison.plan import TUNING_SEED, Plan, budget
from studies.comparison.run import run
from studies.comparison.trials import Budget, Setting, Trial
from support import tiny

CPU = torch.device("cpu")
BUDGET = Budget(8, 3)
SETTING = Setting(("quickstart.yaml",), "tabletop", {"tuning": 2, "test": 4}, "cpu")

# Replaces the training: its AP falls with the distance of the learning rate from 0.004 and grows
# with the seed; at a rate of 0.064 the loss diverges. --fail makes one seed fail, --wait sleeps.
FAKE = """
import math, sys, time
from pathlib import Path
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = Path(options["trainer.default_root_dir"]) / "quickstart" / "version_0"
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "last.ckpt").write_text("large")
print("at work", flush=True)
if "wait" in options:
    time.sleep(60)
rate, seed = float(options["rate"]), int(options["data.seed"])
if options.get("fail") == options["seed_everything"]:
    print("error: it broke")
    sys.exit(2)
if rate > 0.06:
    print("error: loss at step 0 is not a finite number; a lower rate helps")
    sys.exit(2)
ap = 0.5 + seed % 1000 / 10 - abs(math.log2(rate / 0.004)) / 100
rows = ["step,train/loss,val/mask_AP,val/box_AP,val/mask_AR@100", "0,3.5,,,", "4,1.5,,,"]
rows.append(f"8,,{ap},{ap / 2},0.75")
(folder / "metrics.csv").write_text("\\n".join(rows))
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(FAKE)
    return path


def plan_of(output, rates=(0.001, 0.002, 0.004, 0.008), variants=("static",), seeds=2):
    return Plan(output, (BUDGET,), variants, rates, seeds, 1)


def trial_of(output, seed=0, variant="static"):
    return Trial(output, BUDGET, "test", variant, 0.004, seed)


def train(trials, fake, *more, jobs=1, finished=lambda _: None):
    listed = trials if callable(trials) else lambda: trials
    run(
        listed,
        lambda t: [f"--rate={t.rate}", *more],
        fake,
        CPU,
        jobs,
        1,
        lambda t: t.seed / 8,
        finished,
    )


def numbers(trials):
    return [(t.part, t.rate, t.seed) for t in trials]


def test_the_best_rate_is_trained_with_other_seeds(tmp_path, fake):
    plan = plan_of(tmp_path)
    tuned = [("tuning", rate, TUNING_SEED) for rate in plan.rates]
    assert numbers(plan.trials()) == tuned
    done = []
    train(plan.trials, fake, jobs=2, finished=done.append)
    assert numbers(plan.trials()) == [*tuned, ("test", 0.004, 0), ("test", 0.004, 1)]
    assert plan.least == len(done) == 6
    (entry,) = plan.results()
    static = entry["variants"]["static"]
    assert (static["rate"], static["at_the_edge"]) == (0.004, False)
    assert static["tuning"] == pytest.approx(
        {"0.001": 0.48, "0.002": 0.49, "0.004": 0.5, "0.008": 0.49}
    )
    assert [s["metrics"]["mask/AP"] for s in static["seeds"].values()] == [0.5, 0.6]
    assert static["seeds"]["0"]["curve"] == {"steps": [0, 4], "losses": [3.5, 1.5]}


@pytest.mark.parametrize(
    ("rates", "tried", "edge"),
    [
        ((0.004, 0.008), [0.002, 0.004, 0.008], False),
        ((0.016, 0.032), [0.008, 0.016, 0.032], True),
        ((0.0005, 0.001), [0.0005, 0.001, 0.002], True),
        ((0.002, 0.004), [0.002, 0.004, 0.008], False),
    ],
)
def test_a_grid_is_extended_once_at_its_edge(rates, tried, edge, tmp_path, fake):
    plan = plan_of(tmp_path, rates)
    train(plan.trials, fake)
    tuning = plan.tuning(BUDGET, "static")
    assert list(tuning.scores) == tried
    assert tuning.at_the_edge == edge


def test_a_diverged_training_has_ap_0(tmp_path, fake):
    plan = plan_of(tmp_path, (0.032, 0.064))
    train(plan.trials, fake)
    tuning = plan.tuning(BUDGET, "static")
    assert tuning.scores == pytest.approx({0.016: 0.48, 0.032: 0.47, 0.064: 0.0})
    (diverged,) = [t.result for t in tuning.trials if t.rate == 0.064]
    assert diverged is not None
    assert diverged["diverged"]
    assert diverged["kernel_change"] is None
    assert diverged["metrics"] == {"mask/AP": 0, "box/AP": 0}


def test_variants_are_finished_in_their_order(tmp_path, fake):
    plan = plan_of(tmp_path, variants=("dfn", "static"), seeds=1)
    done = []
    train(plan.trials, fake, finished=done.append)
    assert [t.variant for t in done] == ["dfn"] * 5 + ["static"] * 5


def test_finished_trainings_are_kept(tmp_path, fake):
    trials = [trial_of(tmp_path, seed) for seed in range(2)]
    train(trials, fake, jobs=2)
    for trial in trials:
        result = trial.result
        assert result is not None
        assert result["metrics"]["mask/AP"] == 0.5 + trial.seed / 10
        assert result["metrics"]["mask/AR@100"] == 0.75
        assert result["kernel_change"] == trial.seed / 8
        assert 0 < result["cpu_seconds"] < 60
        assert {p.name for p in trial.folder.iterdir()} == {"result.json", "log.txt"}
    train(trials, fake, finished=lambda _: pytest.fail("ran again"))
    assert (trials[0].folder / "log.txt").read_text().count("at work") == 1


def test_an_interrupted_training_is_resumed(tmp_path, fake):
    trial = trial_of(tmp_path)
    left = trial.runs / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()
    train([trial], fake)
    assert "--ckpt_path=last" in (trial.folder / "log.txt").read_text()
    assert trial.result is not None
    assert trial.result["cpu_seconds"] is None  # that of a part is not that of the whole


def test_a_training_without_its_result_only_is_not_repeated(tmp_path, fake):
    trial = trial_of(tmp_path)
    metrics = trial.runs / "quickstart" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,val/mask_AP,val/box_AP\n8,0.25,0.125\n")
    train([trial], fake)
    assert trial.result is not None
    assert trial.result["metrics"] == {"mask/AP": 0.25, "box/AP": 0.125}
    assert trial.result["curve"] == {"steps": [], "losses": []}
    assert (trial.folder / "log.txt").read_text() == ""


def test_a_failure_is_reported_after_the_others(tmp_path, fake):
    trials = [trial_of(tmp_path, seed) for seed in range(3)]
    message = r"1 trainings failed: 8 steps, 3 images, test: static, learning rate 0.004, seed 1: "
    message += r"ended with code 2 \(error: it broke\), see .*"
    with pytest.raises(ValueError, match=message):
        train(trials, fake, "--fail=1")
    assert [t.result is None for t in trials] == [False, True, False]


def test_two_comparisons_do_not_run_the_same_training(tmp_path, fake):
    trial = trial_of(tmp_path)
    trial.folder.mkdir(parents=True)
    with (trial.folder / "log.txt").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"static, .* seed 0: runs in another process"):
            train([trial], fake)


@pytest.mark.tool
def test_sigterm_ends_the_trainings_too(tmp_path, fake):
    program = f"""
from pathlib import Path
import torch
from studies.comparison.run import run
from studies.comparison.trials import Budget, Trial
output, fake = Path({str(tmp_path)!r}), Path({str(fake)!r})
trials = [Trial(output, Budget(8, 3), "test", name, 0.1, 0) for name in ("static", "dfn")]
run(lambda: trials, lambda _: ["--wait", "--rate=1"], fake, torch.device("cpu"), 1, 1, print, print)
"""
    environment = tiny.environment()
    environment["PYTHONPATH"] += os.pathsep + str(tiny.REPOSITORY / "tools")
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    first, second = (Trial(tmp_path, BUDGET, "test", v, 0.1, 0).folder for v in ("static", "dfn"))
    log = first / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "at work" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with log.open("a") as file:  # not locked: the training has ended
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not second.exists()


def test_one_folder_has_one_setting(tmp_path):
    SETTING.check(tmp_path)
    SETTING.check(tmp_path)
    other = Setting(SETTING.configs, "nuclei", SETTING.images, "cpu")
    with pytest.raises(ValueError, match="holds trainings with data tabletop, not nuclei"):
        other.check(tmp_path)


def test_the_command_of_a_training(tmp_path):
    sets = Sets(tmp_path, tmp_path / "train", tmp_path / "val", 4)
    setting = Setting(("a.yaml", "b.yaml"), "x", {}, "cuda:1", ("--data.batch_size=2",))
    command = setting.command(trial_of(tmp_path), sets)
    assert command[:2] == ["--config=a.yaml", "--config=b.yaml"]
    assert {
        "--trainer.max_steps=8",
        "--trainer.accelerator=cuda",
        "--trainer.devices=[1]",
        "--model.optimizer.init_args.lr=0.004",
        f"--data.train_annotations={tmp_path / 'train_3.json'}",
        f"--data.val_annotations={tmp_path / 'test.json'}",
        f"--data.val_images={tmp_path / 'val'}",
    } < set(command)
    assert command[-1] == "--data.batch_size=2"
    tuning = setting.command(Trial(tmp_path, BUDGET, "tuning", "static", 0.004, 0), sets)
    assert f"--data.val_annotations={tmp_path / 'tuning.json'}" in tuning
    assert f"--data.val_images={tmp_path / 'train'}" in tuning


def test_budgets():
    assert budget("600:336") == Budget(600, 336)
    for text in ("600", "0:336", "600:x"):
        with pytest.raises(ValueError, match=f"'{text}'; STEPS:IMAGES is allowed"):
            budget(text)
