"""YAML files for the training's command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from attack.forks import command, forbid_code
from attack.rounds import Attack
from attack.values import ANY_DAMAGE, Change, Damage, as_text, changed, changes, damages
from hypothesis import strategies as st
from support import tiny

from condseg import native
from condseg.cli.train import CommandLine
from condseg.errors import user_errors

CLASSES = (
    *("os.system", "subprocess.Popen", "builtins.exec", "pathlib.Path", "torch.hub.load"),
    *("attack_payload.Payload", "attack_payload", "torch.load", "yaml.unsafe_load", "", "os", "."),
    *("torch.nn.Module", "torch.optim.SGD", "condseg.layers.ODConv2d", "condseg.models.FPN"),
    *("lightning.pytorch.callbacks.Timer", "torch.nn.modules.module.warnings.sys", "a b", "é.é"),
    *("torch.nn.init.torch.os.system", "condseg.native.subprocess.run", "condseg.native.os.system"),
    *("lightning.pytorch.trainer.trainer.os.system", "torch.optim.lr_scheduler.warnings.warn"),
    *("condseg.errors.user_errors", "condseg.zoo.checkpoint.save", "torch.nn.parallel.scatter"),
)
TEXTS = (
    *("", "#", "---\n---\n", "1: 2", "null: 3", "true: 4", "? [a]\n: b", "- a", "text", "3"),
    *(".nan", "trainer: &a\n  x: *a", "a: &a [x]\nb: &b [*a, *a]\nc: *b", "\tx: 1"),
    *("model: {<<: {x: 1}}", "x: \ud800", "\ufeffseed: 1"),
    *("!!python/object/apply:os.system ['touch marker']", "x: !!python/name:os.system", "x: !!set"),
    *("trainer: !!python/object/new:os.system ['x']", "!!binary aGFsbG8=", "x: !!timestamp 1"),
    *("trainer:\n" * 3, "a: b: c", "{", "[" * 2000, "{a: " * 2000, "\0"),
    *("trainer: {max_steps: 1, max_steps: 2}", "seed_everything: [1]", "data: null", "model: null"),
    *("config: other.yaml", "help: true", "model: {help: x}", "print_config: true", "ckpt_path: /"),
    *("data: {root: 1}", "trainer: {callbacks: x}", "trainer: {callbacks+: 3}", "trainer+: {a: 1}"),
    *("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    ),),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Changes of a working file and then of its bytes, or another text."""

    changes: list[Change]
    damage: Damage | None = None
    text: str | None = None


def prepare(folder: Path) -> tuple[Path, dict[str, Any]]:
    data = tiny.make_set(folder / "data", train=4, val=2)
    tiny.arguments(data, folder)
    content = yaml.safe_load((folder / "tiny.yaml").read_text())
    content["trainer"] |= {"max_steps": 6, "val_check_interval": 6, "gradient_clip_val": 1.0}
    content["data"] = {"batch_size": 2, "short_sides": [64], "flip": "both", "crop": 0.1}
    content["model"] |= {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "mask_loss": {"max_proposals": 6},
        "postprocess": {"score_threshold": 0.1},
    }
    content["model"]["network"]["backbone"]["conv"] = {"class_path": "condseg.layers.ODConv2d"}
    content["trainer"]["callbacks+"] = {
        "class_path": "lightning.pytorch.callbacks.LearningRateMonitor"
    }
    content["temperature"] = {"steps": 10}
    content["last_checkpoint"] = {"every_n_steps": 2}
    native.available()
    return data, content


def cases(state: tuple[Path, dict[str, Any]]) -> st.SearchStrategy[Case]:
    _, content = state
    places = [
        ("model", "optimizer"),
        ("model", "schedule"),
        ("model", "network", "head"),
        ("model", "network", "backbone", "conv"),
        ("trainer", "callbacks+"),
    ]
    arguments = st.sampled_from([{}, {"args": "touch marker"}, {"_": 1}, None, "x", {"steps": {}}])
    parts = st.builds(
        lambda path, name, init_args: [Change(path, {"class_path": name, "init_args": init_args})],
        st.sampled_from(places),
        st.sampled_from(CLASSES),
        arguments,
    )
    names = st.builds(
        lambda path, name: [Change(path, name)], st.sampled_from(places), st.sampled_from(CLASSES)
    )
    return st.one_of(
        *[st.builds(Case, changes(content, most=1))] * 2,
        st.builds(Case, parts),
        st.builds(Case, names),
        st.builds(Case, st.just([]), damages(*ANY_DAMAGE)),
        st.builds(Case, st.just([]), st.none(), st.sampled_from(TEXTS)),
    )


def run(state: tuple[Path, dict[str, Any]], case: Case, folder: Path) -> None:
    """Refused, or model, data and trainer are built; no other class is imported or called."""
    data, content = state
    forbid_code()
    (folder / "attack_payload.py").write_text("raise SystemExit('code ran')")
    path = folder / "tiny.yaml"
    text = case.text
    if text is None:
        text = as_text(yaml.safe_dump(changed(content, case.changes), allow_unicode=True))
    written = text.encode("utf-8", "surrogatepass")
    path.write_bytes(case.damage.apply(written) if case.damage else written)

    def build() -> None:
        keep = ("--data.root", "--config", "--trainer.default_root_dir", "--trainer.accelerator")
        arguments = [
            a for a in tiny.arguments(data, folder, "--data.workers=0") if a.startswith(keep)
        ]
        with user_errors():
            CommandLine(arguments)

    # A message names the file or the key; keys begin with one of these.
    command(build, path.name, *_KEYS)


_KEYS = ("trainer.", "model.", "data.", "temperature.", "last_checkpoint.", "seed_everything")
_KEYS += ("progress.", "validation_images.", "ckpt_path", "init_from", "config", "--", "data: ")

ATTACK = Attack(
    "configurations",
    "a YAML file with absurd values, classes of other packages or odd keys, or damaged",
    prepare,
    cases,
    run,
    per_round=3,
    seconds=200,
)
