"""condseg can be imported where a system lacks the modules and signals that only Unix has."""

import subprocess
import sys

import pytest
from support import tiny

PROGRAM = """
import asyncio, importlib, pkgutil, sys  # on Unix, asyncio itself needs fcntl
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
import signal
import lightning.pytorch.trainer.connectors.signal_connector  # uses them behind a check of its own
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
import condseg
for module in pkgutil.walk_packages(condseg.__path__, "condseg."):
    importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.tool
def test_without_the_modules_of_unix():
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = result.stdout.split()
    assert {"condseg.cli.train", "condseg.data.fetch", "condseg.native.build"} <= set(names)
