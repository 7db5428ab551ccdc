"""Help on one screen, the page of all options, and completion in a shell."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support import tiny

import condseg.layers
import condseg.models
from condseg.cli.arguments import training_parser
from condseg.cli.completion import script
from condseg.cli.help import TRAIN
from condseg.cli.main import COMMANDS, main
from condseg.cli.reference import CLASSES, page
from condseg.cli.train import main as train
from condseg.layers import ConvSlot
from condseg.models.heads.base import DenseHead
from condseg.models.losses.base import DenseLoss
from condseg.models.pyramids.base import Pyramid


@pytest.fixture(scope="module")
def parser():
    return training_parser()


def output(command, args, capsys):
    with pytest.raises(SystemExit) as stop:
        command(args)
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_of_the_training_fits_a_screen(parser, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["condseg", "train"])
    assert main(["train", "-h"]) is None
    text = capsys.readouterr().out
    assert text == TRAIN
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 100
    named = set(re.findall(r"--[\w.-]+", text))
    known = parser._option_string_actions
    nested = {"--model.optimizer.init_args.lr", "--option"}
    assert len(named) > 25
    assert named - nested <= known.keys()
    monkeypatch.setattr(sys, "argv", [str(tiny.REPOSITORY / "tools/train.py")])
    text = output(train, ["--config=quickstart", "--help"], capsys)
    assert text.startswith("usage: python tools/train.py --data PATH")
    assert "\n  python tools/train.py --config quickstart " in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_the_others_fits_a_screen_and_has_examples(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    for argv, typed in (("/usr/bin/condseg", f"condseg {name}"), (f"tools/{name}.py", "python ")):
        monkeypatch.setattr(sys, "argv", [argv, name])
        text = output(import_module(f"condseg.cli.{name}").main, ["--help"], capsys)
        assert len(text.splitlines()) <= 50
        assert max(map(len, text.splitlines())) <= 100
        assert re.search(rf"^{typed}", text, re.M)


def test_the_page_of_options_is_up_to_date(capsys):
    text = output(train, ["--help-all"], capsys)
    file = tiny.REPOSITORY / "docs/options.md"
    assert file.read_text() == text, f"condseg train --help-all > {file}"


def test_the_page_has_each_option_and_class_once(parser):
    text = page(parser)
    options = re.findall(r"^\| `(--[\w.]+)`", text, re.M)
    assert len(options) == len(set(options))
    known = {name for name in parser._option_string_actions if not name.endswith((".help", "+"))}
    linked = {"--data.depth", "--model.network.num_classes", "--model.mask_loss.supervision"}
    groups = linked | {
        name for name in known if any(other.startswith(f"{name}.") for other in known)
    }
    assert known - groups - {"-h", "-c", "--help", "--help-all", "--config", "--print_config"} == (
        set(options) - {"--data"}
    )
    for path in {path for paths in CLASSES.values() for path in paths}:
        assert text.count(f"\n### {path}\n") == 1
    for link in re.findall(r"\(#(\w+)\)", text):
        assert link in {p.replace(".", "").lower() for ps in CLASSES.values() for p in ps}
    assert "| `num_experts` | int | `4` | kernels that are mixed (the paper's n) |" in text
    assert "| `tower_convs` | int | `4` |" in text
    assert "| `channels` | int | `null` | channels of the pyramid" not in text


@pytest.mark.parametrize(
    ("option", "package", "base"),
    [
        ("model.network.backbone.conv", condseg.layers, ConvSlot),
        ("model.network.head", condseg.models, DenseHead),
        ("model.network.pyramid", condseg.models, Pyramid),
        ("model.network.mask_branch", condseg.models, condseg.models.MaskBranch),
        ("model.network.mask_head", condseg.models, condseg.models.DynamicMaskHead),
        ("model.dense_loss", condseg.models, DenseLoss),
    ],
)
def test_the_page_has_every_class(option, package, base):
    exported = {
        f"{package.__name__}.{name}"
        for name in package.__all__
        if isinstance(part := getattr(package, name), type)
        and issubclass(part, base)
        and (part is not base or f"{package.__name__}.{name}" in CLASSES[option])
        and getattr(part, "dims", 2) == 2
    }
    generated = {"condseg.layers.DynamicConv2d", "condseg.layers.DynamicDilatedFilter2d"}
    filters = set(CLASSES["model.network.mask_filter"]) | generated  # take a second input
    assert exported - filters == set(CLASSES[option]) - filters


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    path = tmp_path_factory.mktemp("completion") / "condseg"
    path.write_text(script("bash"))
    return path


def completed(path: Path, line: str) -> list[str]:
    """What Tab shows after a line; the last word is the one to complete."""
    words = " ".join(f"'{word}'" for word in line.split(" "))
    program = f"""
source {path}
COMP_WORDS=({words}); COMP_CWORD=$(({len(line.split(" "))} - 1))
_shtab_condseg
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    # Without PATH, nothing can be started.
    result = subprocess.run(
        [shutil.which("bash"), "--norc", "-c", program],
        cwd=path.parent,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


MAX = {"--trainer.max_steps", "--trainer.max_epochs", "--trainer.max_time"}


@pytest.mark.tool
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("condseg pre", {"predict"}),
        ("condseg ", set(COMMANDS)),
        (
            "condseg train --trainer.max",
            {f"--trainer.max_{n}" for n in ("steps", "epochs", "time")},
        ),
        ("condseg train --config qui", {"quickstart"}),
        ("condseg train --config quickstart --data.supervision m", {"masks", "mixed"}),
        ("condseg train --model.network.head condseg.models.F", {"condseg.models.FCOSHead"}),
        ("condseg eval --model condinst_r50_1", {"condinst_r50_1x"}),
        ("condseg predict --format la", {"labelme", "labelstudio"}),
        ("condseg train --init_from cond", {"condseg"}),
    ],
)
def test_tab(bash, line, expected):
    assert set(completed(bash, line)) == expected
