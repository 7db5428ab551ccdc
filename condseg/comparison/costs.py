"""What each variant's forward pass costs, measured in turns in one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from condseg.benchmarks.measure import (
    Run,
    Spread,
    interleaved,
    machine,
    multiply_adds,
    parameters,
    peak_bytes,
)
from condseg.cli import CommandLine
from condseg.comparison.trials import Budget
from condseg.models.condinst import CondInst
from condseg.structures import Batch


def measure(
    variants: Sequence[str],
    budget: Budget,
    configs: Path,
    device: torch.device,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Parameters, operations, latency and peak memory of a forward pass on one picture.

    The network alone, in evaluation and in float32, on the first validation picture: backbone,
    pyramid, head and mask branch. The mask head and the post-process cost by the number of
    objects found, the same for all variants.

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
        networks: dict[str, CondInst] = {}
        for name in variants:
            network, batch = _build(name, budget, configs)
            networks[name] = network.eval().to(device)
        batch = batch.to(device)  # the same for all
        facts = machine(device)
        runs = {name: _forward(network, batch) for name, network in networks.items()}
        seconds = interleaved(runs, device, rounds)
        entries = {
            name: {
                "parameters": parameters(networks[name]),
                "multiply_adds": multiply_adds(runs[name]),
                "latency_seconds": Spread.of(seconds[name]).to_json(),
                "peak_bytes": peak_bytes(runs[name], device),
            }
            for name in variants
        }
    finally:
        torch.set_num_threads(before)
    picture = list(batch.images.shape[-2:])
    return {"machine": facts, "picture": picture, "rounds": rounds, "variants": entries}


def _forward(network: CondInst, batch: Batch) -> Run:
    def run() -> None:
        with torch.inference_mode():
            network(batch.images, batch.sizes, batch.depth)

    return run


def _build(name: str, budget: Budget, configs: Path) -> tuple[CondInst, Batch]:
    """The network as the trial's command line makes it, and one validation picture."""
    words = [
        *budget.command(name),
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--data.val_batch_size=1",
        "--data.workers=0",
    ]
    with _quiet():
        cli = CommandLine(configs, words)
        batch: Batch = next(iter(cli.datamodule.val_dataloader()))
    network: CondInst = cli.model.network
    return network, batch


class _quiet:
    """Nine networks are built; what Lightning says of each is of no use here."""

    def __enter__(self) -> None:
        logging.disable(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
