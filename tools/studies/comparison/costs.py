"""What each variant costs, measured in turns in one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from condseg.cli.train import CommandLine
from condseg.structures import Batch
from condseg.training.module import CondInstModule
from studies.benchmarks.measure import (
    Run,
    Spread,
    interleaved,
    machine,
    multiply_adds,
    parameters,
    peak_bytes,
)
from studies.comparison.trials import Budget


def measure(
    variants: Sequence[str],
    budget: Budget,
    configs: Path,
    device: torch.device,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Parameters, operations and latency of a forward pass, peak memory of a training step.

    The network alone, in evaluation and in float32, on the first validation picture: backbone,
    pyramid, head and mask branch. The mask head and the post-process cost by the number of
    objects found, the same for all variants. The step is forward, losses and backward in float32
    on the first training batch, whose pictures are those of seed 0.

    Args:
        variants: names.
        budget: as the trials had it.
        configs: folder of the configurations.
        device: where the networks run.
        rounds: samples of each latency.
        threads: on the CPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        modules: dict[str, CondInstModule] = {}
        for name in variants:
            module, picture, trained = _build(name, budget, configs)
            modules[name] = module.eval().to(device)
        picture, trained = picture.to(device), trained.to(device)  # the same for all
        facts = machine(device)
        runs = {name: _forward(module, picture) for name, module in modules.items()}
        seconds = interleaved(runs, device, rounds)
        entries = {
            name: {
                "parameters": parameters(module.network),
                "multiply_adds": multiply_adds(runs[name]),
                "latency_seconds": Spread.of(seconds[name]).to_json(),
                "peak_bytes": peak_bytes(_step(module, trained), device),
            }
            for name, module in modules.items()
        }
    finally:
        torch.set_num_threads(before)
    return {
        "machine": facts,
        "picture": list(picture.images.shape[-2:]),
        "batch": len(trained),
        "rounds": rounds,
        "variants": entries,
    }


def _forward(module: CondInstModule, batch: Batch) -> Run:
    def run() -> None:
        with torch.inference_mode():
            module.network(batch.images, batch.sizes, batch.depth)

    return run


def _step(module: CondInstModule, batch: Batch) -> Run:
    def run() -> None:
        module.train()
        torch.stack(list(module.loss(batch).values())).sum().backward()
        module.zero_grad()

    return run


def _build(name: str, budget: Budget, configs: Path) -> tuple[CondInstModule, Batch, Batch]:
    """The model as the trial's command line makes it, a validation picture, a training batch."""
    words = [
        *budget.command(name),
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--data.val_batch_size=1",
        "--data.workers=0",
    ]
    with _quiet():
        cli = CommandLine(words)
        picture, trained = (
            next(iter(loader))
            for loader in (cli.datamodule.val_dataloader(), cli.datamodule.train_dataloader())
        )
    return cli.model, picture, trained


class _quiet:
    """Nine networks are built; what Lightning says of each is of no use here."""

    def __enter__(self) -> None:
        logging.disable(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
