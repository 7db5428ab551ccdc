"""A user's own classes by class_path: what docs/own-parts.md says, and only with --allow."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support import tiny

import condseg
from condseg.cli.eval import main as evaluate
from condseg.cli.predict import main as predict
from condseg.cli.train import main as train
from condseg.zoo.allowed import allowing

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
PAGE = tiny.REPOSITORY / "docs/own-parts.md"
REFUSED = (
    "my_parts.ConfidentHead is not allowed; classes of condseg, torch.nn, torch.optim, "
    "lightning.pytorch are, and with --allow my_parts (in Python, allow=['my_parts']) those of "
    "my_parts, whose code then runs"
)


def block(language: str) -> str:
    """The first block of code of a language in the page."""
    match = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)
    assert match is not None
    return match[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which has the page's module and configuration."""
    (tmp_path / "my_parts.py").write_text(block("python"))
    (tmp_path / "my.yaml").write_text(block("yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("my_parts", None)


def test_the_page_as_it_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.make_set(folder / "data", 6, 2)
    args = tiny.arguments(data, folder / "runs", "--config=my.yaml", "--progress.refresh_rate=0")
    args += ["--trainer.max_steps=2", "--validation_images.count=0"]
    assert tiny.error(train, args, capsys) == f"model.optimizer: {REFUSED}".replace(
        "ConfidentHead", "SignSGD"
    )
    assert "my_parts" not in sys.modules
    cli = train([*args, "--allow", "my_parts"])
    assert "1 steps left\n0 steps left\n" in capsys.readouterr().out
    model = cli.model
    assert type(model.network.head).__name__ == "ConfidentHead"
    assert type(model.optimizers().optimizer).__name__ == "SignSGD"
    assert "GatedConv2d" in {type(module).__name__ for module in model.modules()}
    # Neither the checkpoint nor the run's configuration allows it.
    best = folder / "runs/tiny-my/version_0/checkpoints/best.ckpt"
    last = best.with_name("last.ckpt")
    given = ["--checkpoint", str(best), "--device=cpu"]
    evaluation = ["--data", str(data), "--workers=0"]
    message = tiny.error(evaluate, [*given, *evaluation], capsys)
    assert message == f"checkpoint {best}: {REFUSED}"
    assert tiny.error(predict, [*given, "x.png"], capsys) == message
    for option in (f"--init_from={best}", f"--ckpt_path={last}"):
        assert "my_parts." in tiny.error(train, [*args[1:], option], capsys)
    with pytest.raises(ValueError, match="is not allowed"):
        condseg.load(best)
    # It is allowed by each command for itself.
    evaluate([*given, *evaluation, "--allow=my_parts"])
    assert "box" in capsys.readouterr().out
    loaded = condseg.load(best, device="cpu", allow=["my_parts"])
    assert loaded.predict(np.zeros((64, 64, 3), np.uint8)).image.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="is not allowed"):
        condseg.load(best)


def test_a_file_allows_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my.yaml").write_text("allow: my_parts\n" + block("yaml"))
    assert "my.yaml: unknown key allow" in tiny.error(train, ["--config=my.yaml"], capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_parts", "there is no module absent_parts, neither installed nor in the current"),
        ("my parts", "the name of a package or module is allowed"),
        ("jsonargparse", "can't be allowed"),
        ("os", "Python's own modules, which start programs, are not"),
    ],
)
def test_what_cannot_be_allowed(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), allowing([name]):
        pass


def test_the_own_packages_stay_allowed(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "best.ckpt")
    condseg.load(path, device="cpu", allow=["condseg", "torch.nn"])
    condseg.load(path, device="cpu")
