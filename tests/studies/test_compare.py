"""The comparison: what is finished is kept, what came out is what the trainings said."""

from __future__ import annotations

import fcntl
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies.comparison import figure, summary
from studies.comparison.compare import write
from studies.comparison.trials import Budget, Trial, run, same_budget, trials
from studies.comparison.variants import CLAIMS, CONV, FILTER, VARIANTS, WHERE, choose, words
from support import tiny

from condseg import layers
from condseg.cli.train import CommandLine
from condseg.data.images import read_image

TOOL = tiny.REPOSITORY / "tools" / "compare.py"
TRAIN = tiny.REPOSITORY / "tools" / "train.py"
BUDGET = Budget(("quickstart.yaml",), 8)
MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 1, "torch": "2", "python": "3", "condseg": "0"}

# Stands for tools/train.py: one row of figures, which depend on the seed; --fail fails, --wait
# stays until it is ended.
FAKE = """
import sys, time
from pathlib import Path
given = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = Path(given["trainer.default_root_dir"]) / "quickstart" / "version_0"
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "last.ckpt").write_text("large")
print("at work", flush=True)
if "wait" in given:
    time.sleep(60)
if given.get("fail") == given["seed_everything"]:
    print("error: it broke")
    sys.exit(2)
seed = int(given["data.seed"])
rows = ["step,train/loss,val/mask_AP,val/box_AP,val/mask_AR@100", "4,1.5,,,"]
rows.append(f"8,,{0.5 + seed / 10},{0.25 + seed / 10},0.75")
(folder / "metrics.csv").write_text("\\n".join(rows))
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(FAKE)
    return path


def result(mask: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    metrics = {"mask/AP": mask, "box/AP": mask - 0.1}
    return {"metrics": metrics, "seed": seed, "cpu_seconds": 120.0, "machine": MACHINE, **more}


def results(**scores: list[float]) -> dict[str, dict[int, dict[str, Any]]]:
    return {
        name: {seed: result(score, seed) for seed, score in enumerate(values)}
        for name, values in scores.items()
    }


def costs(*names: str) -> dict[str, Any]:
    entry = {
        "parameters": 5_000_000,
        "multiply_adds": 1_250_000_000,
        "latency_seconds": {"median": 0.0255, "q1": 0.025, "q3": 0.03},
        "peak_bytes": 3 * 2**20,
    }
    facts = MACHINE | {"load_average_1min": 0.5}
    variants = dict.fromkeys(names, entry)
    sizes = {"picture": [192, 256], "batch": 4, "rounds": 30}
    return {"machine": facts, **sizes, "variants": variants}


PLAIN = {"configs": ["quickstart.yaml"], "steps": 8, "words": []}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_what_it_says_and_learns(name: str, tmp_path: Path) -> None:
    """Options of the configuration's own layer do not stay for the one in its place."""
    data = tiny.make_set(tmp_path / "data")
    own = tmp_path / "own.yaml"
    conv = {"class_path": "condseg.layers.ODConv2d", "init_args": {"reduction": 0.5}}
    own.write_text(f"model: {{network: {{backbone: {{conv: {json.dumps(conv)}}}}}}}")
    extra = (f"--config={own}", *words(VARIANTS[name]))
    cli = CommandLine(tiny.arguments(data, tmp_path / "runs", *extra))
    modules = [m for m in cli.model.network.modules() if type(m).__name__ in layers.__all__]
    wanted = {key: v for key, v in VARIANTS[name].overrides.items() if key in (CONV, FILTER)}
    assert bool(modules) == bool(wanted)
    for value in wanted.values():
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


def test_the_same_convolutions_are_dynamic_in_all_backbones() -> None:
    places = {str(v.overrides[WHERE]) for v in VARIANTS.values() if WHERE in v.overrides}
    assert places == {"[3, 4, 5]"}
    assert {v.part for v in VARIANTS.values()} == {"none", "backbone", "mask filter"}
    for better, worse, _ in CLAIMS:
        assert {better, worse} <= set(VARIANTS)


def test_variants_come_in_the_tables_order() -> None:
    assert choose(["dfn", "static"]) == ["static", "dfn"]
    with pytest.raises(ValueError, match="'odconv' is unknown; there are static, condconv"):
        choose(["odconv"])


def test_rounds_of_seeds(tmp_path: Path) -> None:
    order = [(t.seed, t.variant) for t in trials(tmp_path, ["static", "dfn"], 2)]
    assert order == [(0, "static"), (0, "dfn"), (1, "static"), (1, "dfn")]


def test_a_training_is_one_command() -> None:
    command = Budget(("a.yaml", "b.yaml"), 8, ("--data.batch_size=2",)).command("odconv_4x")
    assert command[:2] == ["--config=a.yaml", "--config=b.yaml"]
    assert {"--trainer.max_steps=8", "--trainer.val_check_interval=8"} < set(command)
    assert command[-1] == "--data.batch_size=2"


def test_finished_trials_are_kept(tmp_path: Path, fake: Path) -> None:
    todo = trials(tmp_path, ["static", "dfn"], 2)
    done: list[Trial] = []
    run(todo, BUDGET, fake, 2, 1, done.append)
    assert sorted(map(str, done)) == sorted(map(str, todo))
    for trial in todo:
        found = trial.result
        assert found is not None
        assert found["metrics"]["mask/AP"] == 0.5 + trial.seed / 10
        assert found["metrics"]["mask/AR@100"] == 0.75
        assert 0 < found["cpu_seconds"] < 60
        assert {p.name for p in trial.folder.iterdir()} == {"result.json", "log.txt", "metrics.csv"}
        assert (trial.folder / "log.txt").read_text().count("at work") == 1
    run(todo, BUDGET, fake, 2, 1, lambda _: pytest.fail("ran again"))
    assert (todo[0].folder / "log.txt").read_text().count("at work") == 1


def test_a_trial_that_was_cut_short_goes_on(tmp_path: Path, fake: Path) -> None:
    (trial,) = trials(tmp_path, ["static"], 1)
    left = trial.folder / "run" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()
    run([trial], BUDGET, fake, 1, 1, lambda _: None)
    assert "--ckpt_path=last" in (trial.folder / "log.txt").read_text()
    # The time of a part is not that of the whole.
    assert trial.result is not None
    assert trial.result["cpu_seconds"] is None


def test_a_trial_that_only_lacks_its_result_is_not_trained(tmp_path: Path, fake: Path) -> None:
    (trial,) = trials(tmp_path, ["static"], 1)
    metrics = trial.folder / "run" / "quickstart" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,val/mask_AP,val/box_AP\n8,0.25,0.125\n")
    run([trial], BUDGET, fake, 1, 1, lambda _: None)
    assert trial.result is not None
    assert trial.result["metrics"] == {"mask/AP": 0.25, "box/AP": 0.125}
    assert (trial.folder / "log.txt").read_text() == ""


def test_a_failure_is_told_after_the_others_are_done(tmp_path: Path, fake: Path) -> None:
    todo = trials(tmp_path, ["static"], 3)
    broken = Budget(BUDGET.configs, 8, ("--fail=1",))
    said = r"1 trainings failed: static, seed 1: ended with code 2 \(error: it broke\), see .*log"
    with pytest.raises(ValueError, match=said):
        run(todo, broken, fake, 1, 1, lambda _: None)
    assert [t.result is None for t in todo] == [False, True, False]


def test_two_comparisons_do_not_train_the_same(tmp_path: Path, fake: Path) -> None:
    (trial,) = trials(tmp_path, ["static"], 1)
    trial.folder.mkdir(parents=True)
    with (trial.folder / "log.txt").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="static, seed 0: runs in another process"):
            run([trial], BUDGET, fake, 1, 1, lambda _: None)


def test_sigterm_ends_the_trainings_too(tmp_path: Path, fake: Path) -> None:
    program = f"""
from pathlib import Path
from studies.comparison.trials import Budget, run, trials
run(trials(Path({str(tmp_path)!r}), ["static", "dfn"], 2), Budget(("quickstart.yaml",), 8,
    ("--wait",)), Path({str(fake)!r}), 1, 1, print)
"""
    process = subprocess.Popen([sys.executable, "-c", program], env=tiny.environment())
    log = tmp_path / "trials" / "static" / "seed_0" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "at work" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with log.open("a") as file:  # free: the training is gone
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (tmp_path / "trials" / "dfn" / "seed_0").exists()


def test_one_folder_has_one_budget(tmp_path: Path) -> None:
    same_budget(tmp_path, BUDGET)
    same_budget(tmp_path, BUDGET)
    with pytest.raises(ValueError, match="holds trials with steps 8, asked is 9"):
        same_budget(tmp_path, Budget(BUDGET.configs, 9))


def test_statistics() -> None:
    found = summary.Statistics.of([0.25, 0.5, 0.75])
    assert (found.mean, found.deviation, found.low, found.high) == (0.5, 0.25, 0.25, 0.75)
    assert str(found) == "0.500 ± 0.250"
    one = summary.Statistics.of([0.5])
    assert math.isnan(one.deviation)
    assert str(one) == "0.500"


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.41, 0.5, 0.6], "shows"),
        ([0.4, 0.9, 0.9], "does not show"),
        ([0.1, 0.25, 0.35], "does not show"),
        ([0.1, 0.2, 0.29], "contradicted"),
    ],
)
def test_a_claim_shows_where_the_seeds_lie_apart(scores: list[float], verdict: str) -> None:
    (judged,) = summary.verdicts(results(static=[0.3, 0.35, 0.4], dfn=scores))
    assert judged.claim == "DFN filter beats static"
    assert judged.verdict == verdict
    assert judged.luck == pytest.approx(2 / 20)
    assert judged.difference == pytest.approx(np.mean(scores) - 0.35)


def test_no_verdict_without_both() -> None:
    assert summary.verdicts(results(static=[0.3], dfn=[])) == []


def test_two_seeds_tell_nothing() -> None:
    for scores in ([0.5], [0.5, 0.6]):
        (judged,) = summary.verdicts(results(static=[0.3] * len(scores), dfn=scores))
        assert judged.verdict == "too few seeds"
    assert summary.verdicts(results(static=[0.3], dfn=[0.5]))[0].luck == 1


def test_page() -> None:
    found = results(static=[0.3, 0.4], odconv_1x=[0.5])
    text = summary.page(found, costs("static", "odconv_1x"), PLAIN)
    static = next(line for line in text.splitlines() if line.startswith("| static"))
    assert static == (
        "| static | none | 2 | 0.350 ± 0.071 | 0.250 ± 0.071 | 5.00 M | 2.50 | "
        "25.5 ms (25.0 to 30.0) | 3.0 MiB | 2.0 |"
    )
    assert "| ODConv 1x | backbone | 1 | 0.500 | 0.400 |" in text
    assert "| ODConv 1x beats static | +0.150 | too few seeds | 67% |" in text
    assert "8 steps of quickstart.yaml; 1 to 2 seeds" in text
    assert "a CPU, 2 cores" in text
    assert "192 x 256" in text


def test_page_of_what_is_there_so_far() -> None:
    text = summary.page(results(static=[0.3], dfn=[]), None, PLAIN)
    assert "Costs: not measured yet." in text
    assert "| DFN filter | mask filter | 0 | - | - | - | - | - | - | - |" in text


def test_plain_data_has_each_seed_and_no_nan() -> None:
    found = results(static=[0.3], dfn=[0.3, 0.4])
    content = summary.as_dict(found, costs("static", "dfn"), PLAIN)
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["variants"]["static"]["mask/AP"]["deviation"] is None
    assert again["variants"]["dfn"]["seeds"]["1"]["metrics"]["mask/AP"] == 0.4
    assert again["variants"]["dfn"]["overrides"] == VARIANTS["dfn"].overrides
    assert again["costs"]["picture"] == [192, 256]


def test_figure() -> None:
    found = results(static=[0.3, 0.31, 0.33], dfn=[0.4, 0.41, 0.42], dmnet=[])
    without = figure.draw(found, None, PLAIN)
    image = figure.draw(found, costs("static", "dfn"), PLAIN)
    assert image.shape[1] > without.shape[1]
    line = figure.HEIGHT
    more = figure.draw(results(static=[0.3], dfn=[0.4], dmnet=[0.5]), None, PLAIN)
    assert more.shape[0] == without.shape[0] + line
    for colour in (figure.COLOURS["none"], figure.COLOURS["mask filter"]):
        assert (image == np.array(colour)).all(-1).any()


def test_figure_of_one_value() -> None:
    assert figure.draw(results(static=[0.0]), None, PLAIN).std() > 0


def test_written_files(tmp_path: Path, fake: Path) -> None:
    todo = trials(tmp_path, ["static", "dfn"], 1)
    run(todo[:1], BUDGET, fake, 1, 1, lambda _: None)
    page = tmp_path / "docs" / "page.md"
    write(tmp_path, BUDGET, todo)
    write(tmp_path, BUDGET, todo, page)
    assert "| static | none | 1 |" in page.read_text()
    assert {p.name for p in page.parent.iterdir()} == {
        "page.md",
        "comparison.json",
        "comparison.png",
    }
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["variants"]["static"]["mask/AP"]["mean"] == 0.5
    assert content["variants"]["dfn"]["seeds"] == {}
    assert "comparison.png" in (tmp_path / "comparison.md").read_text()
    assert read_image(tmp_path / "comparison.png").std() > 0


def call(monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, given)])
    runpy.run_path(str(TOOL), run_name="__main__")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--seeds", 0), "seeds is 0; 1 or more is allowed"),
        (("--steps", 0), "steps is 0"),
        (("--variants", "static", "x"), "'x' is unknown"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(
    given: tuple[object, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *given, "--output", tmp_path / "out")
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_a_user_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tiny.make_set(tmp_path / "data"), tmp_path / "out"
    config, *words = tiny.arguments(data, tmp_path / "runs")
    own = ("trainer.max_steps", "trainer.val_check", "trainer.default_root", "temperature")
    words = [word for word in words if not word[2:].startswith(own)]
    given = ["--config", config.partition("=")[2], "--variants", "odconv_4x", "static"]
    given += ["--seeds", 1, "--steps", 2, "--rounds", 2, "--device", "cpu", "--output", output]
    monkeypatch.setenv("PYTHONPATH", str(tiny.REPOSITORY))
    call(monkeypatch, *given, "--", *words)
    assert "[2/2]" in capsys.readouterr().out
    content = json.loads((output / "comparison.json").read_text())
    static, odconv = content["variants"]["static"], content["variants"]["odconv_4x"]
    for entry in (static, odconv):
        assert 0 <= entry["mask/AP"]["mean"] <= 1
        assert entry["costs"]["peak_bytes"] > 0
        assert entry["costs"]["latency_seconds"]["median"] > 0
    assert odconv["costs"]["parameters"] > static["costs"]["parameters"]
    assert odconv["costs"]["multiply_adds"] > static["costs"]["multiply_adds"]
    assert odconv["costs"]["peak_bytes"] > static["costs"]["peak_bytes"]
    first = (output / "trials" / "static" / "seed_0" / "result.json").stat().st_mtime_ns
    call(monkeypatch, *given, "--", *words)
    assert "2 trainings, 2 done before" in capsys.readouterr().out
    assert (output / "trials" / "static" / "seed_0" / "result.json").stat().st_mtime_ns == first
    assert json.loads((output / "comparison.json").read_text()) == content
