"""The costs of each variant, measured in turns in one process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from jsonargparse import set_parsing_settings

from condseg.cli.train import CommandLine
from condseg.structures import Batch
from condseg.training.module import CondInstModule
from studies.benchmarks.inputs import inference
from studies.comparison.variants import LAYERS
from studies.measure import Spread, interleaved, machine, multiply_adds, parameters, peak_bytes

ROUNDS = 30


def measure(
    commands: Mapping[str, list[str]], device: torch.device, threads: int
) -> dict[str, Any]:
    """Parameters, operations and latency of a forward pass, peak memory of a training step.

    The forward pass is the network's (backbone, pyramid, head and mask branch) on the first
    validation image, in evaluation mode and float32. The costs of mask head and post-process
    depend on the number of objects and are the same for all variants. The training step is
    forward, losses and backward in float32 on the first training batch of seed 0.

    Args:
        commands: variant -> arguments of one of its trainings.
    """
    torch.set_num_threads(threads)
    modules: dict[str, CondInstModule] = {}
    for name, command in commands.items():
        module, image, trained = _build(command)
        modules[name] = module.eval().to(device)
    image, trained = image.to(device), trained.to(device)  # the same for all
    facts = machine(device)
    inputs = image.images, image.sizes, image.depth
    runs = {name: inference(module.network, *inputs) for name, module in modules.items()}
    seconds = interleaved(runs, device, ROUNDS)
    entries = {
        name: {
            "parameters": parameters(module.network),
            "multiply_adds": multiply_adds(runs[name]),
            "latency_seconds": asdict(Spread.of(seconds[name])),
            "peak_bytes": peak_bytes(partial(_step, module, trained), device),
        }
        for name, module in modules.items()
    }
    return {
        "machine": facts,
        "image": list(image.images.shape[-2:]),
        "batch": len(trained),
        "rounds": ROUNDS,
        "variants": entries,
    }


def _step(module: CondInstModule, batch: Batch) -> None:
    module.train()
    torch.stack(list(module.loss(batch).values())).sum().backward()
    module.zero_grad()


def _build(command: list[str]) -> tuple[CondInstModule, Batch, Batch]:
    """The model of a training's command line, a validation image, a training batch."""
    command = [*command, "--trainer.accelerator=cpu", "--trainer.devices=1"]
    command += ["--data.val_batch_size=1", "--data.workers=0"]
    set_parsing_settings(import_path_allowlist=[LAYERS])
    logging.disable(logging.INFO)  # Lightning's, of each network
    try:
        cli = CommandLine(command)
        loaders = cli.datamodule.val_dataloader(), cli.datamodule.train_dataloader()
        image, trained = (next(iter(loader)) for loader in loaders)
    finally:
        logging.disable(logging.NOTSET)
    return cli.model, image, trained
