"""The comparison keeps finished trainings, and summarises what the trainings reported."""

import fcntl
import json
import os
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from studies.comparison import figure, summary
from studies.comparison.compare import write
from studies.comparison.trials import Budget, check_budget, run, trials
from studies.comparison.variants import CLAIMS, CONV, FILTER, VARIANTS, WHERE, arguments
from support import tiny

from condseg import layers
from condseg.cli.train import CommandLine
from condseg.data.images import read_image

TOOL = tiny.REPOSITORY / "tools" / "compare.py"
BUDGET = Budget(("quickstart.yaml",), 8)
MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 1, "torch": "2", "python": "3", "condseg": "0"}

# Replaces tools/train.py: it writes metrics that depend on the seed; --fail makes one seed fail,
# --wait sleeps.
FAKE = """
import sys, time
from pathlib import Path
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = Path(options["trainer.default_root_dir"]) / "quickstart" / "version_0"
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "last.ckpt").write_text("large")
print("at work", flush=True)
if "wait" in options:
    time.sleep(60)
if options.get("fail") == options["seed_everything"]:
    print("error: it broke")
    sys.exit(2)
seed = int(options["data.seed"])
rows = ["step,train/loss,val/mask_AP,val/box_AP,val/mask_AR@100", "4,1.5,,,"]
rows.append(f"8,,{0.5 + seed / 10},{0.25 + seed / 10},0.75")
(folder / "metrics.csv").write_text("\\n".join(rows))
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(FAKE)
    return path


def results(**scores):
    return {
        name: {
            seed: {
                "metrics": {"mask/AP": score, "box/AP": score - 0.1},
                "cpu_seconds": 120.0,
                "machine": MACHINE,
            }
            for seed, score in enumerate(values)
        }
        for name, values in scores.items()
    }


def costs(*names):
    entry = {
        "parameters": 5_000_000,
        "multiply_adds": 1_250_000_000,
        "latency_seconds": {"median": 0.0255, "q1": 0.025, "q3": 0.03},
        "peak_bytes": 3 * 2**20,
    }
    sizes = {"image": [192, 256], "batch": 4, "rounds": 30}
    variants = dict.fromkeys(names, entry)
    return {"machine": MACHINE | {"load_average_1min": 0.5}, **sizes, "variants": variants}


PLAIN = {"configs": ["quickstart.yaml"], "steps": 8, "arguments": []}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_has_its_layers_and_trains(name, tmp_path):
    """Arguments of the configuration's own layer are not passed to the one that replaces it."""
    data = tiny.make_set(tmp_path / "data")
    own = tmp_path / "own.yaml"
    conv = {"class_path": "condseg.layers.ODConv2d", "init_args": {"reduction": 0.5}}
    own.write_text(f"model: {{network: {{backbone: {{conv: {json.dumps(conv)}}}}}}}")
    extra = (f"--config={own}", *arguments(VARIANTS[name]))
    cli = CommandLine(tiny.arguments(data, tmp_path / "runs", *extra))
    modules = [m for m in cli.model.network.modules() if type(m).__name__ in layers.__all__]
    overrides = {key: v for key, v in VARIANTS[name].overrides.items() if key in (CONV, FILTER)}
    assert bool(modules) == bool(overrides)
    for value in overrides.values():
        kind = getattr(layers, value["class_path"].rpartition(".")[2])
        found = [m for m in modules if isinstance(m, kind)]
        assert found
        for key, number in value.get("init_args", {}).items():
            assert {getattr(m, key) for m in found} == {number}
    if name == "dyconv":
        hidden = {m.attention.fc1.out_channels for m in modules if isinstance(m, layers.DyConv2d)}
        assert hidden == {16 // 4 + 1, 32 // 4 + 1, 64 // 4 + 1, 8 // 4 + 1}
    batch = next(iter(cli.datamodule.train_dataloader()))
    torch.stack(list(cli.model.loss(batch).values())).sum().backward()
    first = modules[0] if modules else cli.model.network.mask_branch
    gradients = [p.grad for p in first.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_variants():
    places = {str(v.overrides[WHERE]) for v in VARIANTS.values() if WHERE in v.overrides}
    assert places == {"[3, 4, 5]"}  # the same convolutions in all backbones
    assert {v.part for v in VARIANTS.values()} == set(figure.COLOURS)
    assert {name for claim in CLAIMS for name in claim[:2]} <= set(VARIANTS)


def test_the_command_of_a_training():
    command = Budget(("a.yaml", "b.yaml"), 8, ("--data.batch_size=2",)).command("odconv_4x")
    assert command[:2] == ["--config=a.yaml", "--config=b.yaml"]
    assert {"--trainer.max_steps=8", "--trainer.val_check_interval=8"} < set(command)
    assert command[-1] == "--data.batch_size=2"


def test_finished_trials_are_kept(tmp_path, fake):
    todo = trials(tmp_path, ["static", "dfn"], 2)
    order = [(t.seed, t.variant) for t in todo]
    assert order == [(0, "static"), (0, "dfn"), (1, "static"), (1, "dfn")]
    done = []
    run(todo, BUDGET, fake, 2, 1, done.append)
    assert sorted(map(str, done)) == sorted(map(str, todo))
    for trial in todo:
        result = trial.result
        assert result is not None
        assert result["metrics"]["mask/AP"] == 0.5 + trial.seed / 10
        assert result["metrics"]["mask/AR@100"] == 0.75
        assert 0 < result["cpu_seconds"] < 60
        assert {p.name for p in trial.folder.iterdir()} == {"result.json", "log.txt", "metrics.csv"}
    run(todo, BUDGET, fake, 2, 1, lambda _: pytest.fail("ran again"))
    assert (todo[0].folder / "log.txt").read_text().count("at work") == 1


def test_an_interrupted_trial_is_resumed(tmp_path, fake):
    (trial,) = trials(tmp_path, ["static"], 1)
    left = trial.folder / "run" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()
    run([trial], BUDGET, fake, 1, 1, lambda _: None)
    assert "--ckpt_path=last" in (trial.folder / "log.txt").read_text()
    assert trial.result is not None
    assert trial.result["cpu_seconds"] is None  # that of a part is not that of the whole


def test_a_trial_without_its_result_only_is_not_trained(tmp_path, fake):
    (trial,) = trials(tmp_path, ["static"], 1)
    metrics = trial.folder / "run" / "quickstart" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,val/mask_AP,val/box_AP\n8,0.25,0.125\n")
    run([trial], BUDGET, fake, 1, 1, lambda _: None)
    assert trial.result is not None
    assert trial.result["metrics"] == {"mask/AP": 0.25, "box/AP": 0.125}
    assert (trial.folder / "log.txt").read_text() == ""


def test_a_failure_is_reported_after_the_others(tmp_path, fake):
    todo = trials(tmp_path, ["static"], 3)
    broken = Budget(BUDGET.configs, 8, ("--fail=1",))
    message = r"1 trainings failed: static, seed 1: ended with code 2 \(error: it broke\), see .*"
    with pytest.raises(ValueError, match=message):
        run(todo, broken, fake, 1, 1, lambda _: None)
    assert [t.result is None for t in todo] == [False, True, False]


def test_two_comparisons_do_not_run_the_same_trial(tmp_path, fake):
    (trial,) = trials(tmp_path, ["static"], 1)
    trial.folder.mkdir(parents=True)
    with (trial.folder / "log.txt").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="static, seed 0: runs in another process"):
            run([trial], BUDGET, fake, 1, 1, lambda _: None)


@pytest.mark.tool
def test_sigterm_ends_the_trainings_too(tmp_path, fake):
    program = f"""
from pathlib import Path
from studies.comparison.trials import Budget, run, trials
run(trials(Path({str(tmp_path)!r}), ["static", "dfn"], 2), Budget(("quickstart.yaml",), 8,
    ("--wait",)), Path({str(fake)!r}), 1, 1, print)
"""
    environment = tiny.environment()
    environment["PYTHONPATH"] += os.pathsep + str(tiny.REPOSITORY / "tools")
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    log = tmp_path / "trials" / "static" / "seed_0" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "at work" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with log.open("a") as file:  # not locked: the training has ended
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (tmp_path / "trials" / "dfn" / "seed_0").exists()


def test_one_folder_has_one_budget(tmp_path):
    check_budget(tmp_path, BUDGET)
    check_budget(tmp_path, BUDGET)
    with pytest.raises(ValueError, match="holds trials with steps 8, not 9"):
        check_budget(tmp_path, Budget(BUDGET.configs, 9))


def test_mean_and_deviation():
    assert summary.mean_and_deviation([0.25, 0.5, 0.75]) == "0.500 ± 0.250"
    assert summary.mean_and_deviation([0.5]) == "0.500"


@pytest.mark.parametrize(
    ("static", "dfn", "verdict", "chance"),
    [
        ([0.3, 0.35, 0.4], [0.41, 0.5, 0.6], "supported", 2 / 20),
        ([0.3, 0.35, 0.4], [0.4, 0.9, 0.9], "open", 2 / 20),
        ([0.3, 0.35, 0.4], [0.1, 0.25, 0.35], "open", 2 / 20),
        ([0.3, 0.35, 0.4], [0.1, 0.2, 0.29], "contradicted", 2 / 20),
        ([0.3, 0.3], [0.5, 0.6], "too few seeds", 2 / 6),
        ([0.3], [0.5], "too few seeds", 1),
    ],
)
def test_verdicts(static, dfn, verdict, chance):
    (judged,) = summary.verdicts(results(static=static, dfn=dfn))
    assert judged["claim"] == "DFN filter beats static"
    assert judged["verdict"] == verdict
    assert judged["chance"] == pytest.approx(chance)
    assert judged["difference"] == pytest.approx(np.mean(dfn) - np.mean(static))
    assert summary.verdicts(results(static=static, dfn=[])) == []


def test_page():
    scores = results(static=[0.3, 0.4], odconv_1x=[0.5])
    text = summary.page(scores, costs("static", "odconv_1x"), PLAIN)
    assert (
        "| static | none | 2 | 0.350 ± 0.071 | 0.250 ± 0.071 | 5.00 M | 2.50 | "
        "25.5 ms (25.0 to 30.0) | 3.0 MiB | 2.0 |"
    ) in text
    assert "| ODConv 1x | backbone | 1 | 0.500 | 0.400 |" in text
    assert "| ODConv 1x beats static | +0.150 | too few seeds | 67% |" in text
    assert "8 steps of quickstart.yaml; 1 to 2 seeds" in text
    assert "a CPU, 2 cores" in text
    assert "192 x 256" in text
    unfinished = summary.page(results(static=[0.3], dfn=[]), None, PLAIN)
    assert "Costs: not measured yet." in unfinished
    assert "| DFN filter | mask filter | 0 | - | - | - | - | - | - | - |" in unfinished


def test_figure():
    scores = results(static=[0.3, 0.31, 0.33], dfn=[0.4, 0.41, 0.42], dmnet=[])
    assert len(figure.draw(scores, None, PLAIN).axes) == 1
    drawn = figure.draw(scores, costs("static", "dfn"), PLAIN)
    aps, parameters, *_ = drawn.axes
    assert len(drawn.axes) == 1 + len(figure.COSTS)
    assert [label.get_text() for label in aps.get_yticklabels()] == ["static", "DFN filter"]
    assert list(aps.lines[2].get_xdata()) == [0.4, 0.41, 0.42]
    assert [text.get_text() for text in parameters.texts] == ["5.0 M", "5.0 M"]


def test_written_files(tmp_path, fake):
    todo = trials(tmp_path, ["static", "dfn"], 1)
    run(todo[:1], BUDGET, fake, 1, 1, lambda _: None)
    page = tmp_path / "docs" / "page.md"
    write(tmp_path, BUDGET, todo, page)
    assert "| static | none | 1 |" in page.read_text()
    names = {"page.md", "comparison.json", "comparison.png"}
    assert {p.name for p in page.parent.iterdir()} == names
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["variants"]["static"]["seeds"]["0"]["metrics"]["mask/AP"] == 0.5
    assert content["variants"]["dfn"]["seeds"] == {}
    assert "comparison.png" in (tmp_path / "comparison.md").read_text()
    assert read_image(tmp_path / "comparison.png").std() > 0


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name="__main__")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seeds", 0), "seeds is 0; 1 or more is allowed"),
        (("--steps", 0), "steps is 0"),
        (("--variants", "static", "x"), "invalid choice: 'x'"),
    ],
)
def test_errors_of_a_user(args, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *args, "--output", tmp_path / "out")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.tool
def test_the_whole_comparison(tmp_path, monkeypatch, capsys):
    data, output = tiny.make_set(tmp_path / "data"), tmp_path / "out"
    config, *more = tiny.arguments(data, tmp_path / "runs")
    own = ("trainer.max_steps", "trainer.val_check", "trainer.default_root", "temperature")
    more = [argument for argument in more if not argument[2:].startswith(own)]
    args = ["--config", config.partition("=")[2], "--variants", "odconv_4x", "static"]
    args += ["--seeds", 1, "--steps", 2, "--device", "cpu", "--output", output]
    monkeypatch.setenv("PYTHONPATH", str(tiny.REPOSITORY))
    call(monkeypatch, *args, "--", *more)
    assert "[2/2]" in capsys.readouterr().out
    content = json.loads((output / "comparison.json").read_text())
    static, odconv = content["variants"]["static"], content["variants"]["odconv_4x"]
    for entry in (static, odconv):
        assert 0 <= entry["seeds"]["0"]["metrics"]["mask/AP"] <= 1
        assert entry["costs"]["latency_seconds"]["median"] > 0
    for cost in ("parameters", "multiply_adds", "peak_bytes"):
        assert odconv["costs"][cost] > static["costs"][cost] > 0
    first = (output / "trials" / "static" / "seed_0" / "result.json").stat().st_mtime_ns
    call(monkeypatch, *args, "--", *more)
    assert "2 trainings, 2 done before" in capsys.readouterr().out
    assert (output / "trials" / "static" / "seed_0" / "result.json").stat().st_mtime_ns == first
    assert json.loads((output / "comparison.json").read_text()) == content
