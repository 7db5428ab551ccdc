"""Calls in forks of this process: nothing that happens to one reaches the next.

Importing PyTorch and Lightning takes seconds, a fork some hundredths of one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

MEMORY = 3 << 30
"""Bytes that a call may take in addition to those of this process."""

CPU_SECONDS = 20
_CODE_RAN = 99
_FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
_FORBIDDEN |= {"socket.connect", "webbrowser.open", "pty.spawn"}


class FaultError(Exception):
    """A wrong result."""


class RefusedError(Exception):
    """The input was refused as it should be."""


@dataclass(frozen=True)
class Ended:
    """How a call ended: its value, or the fault.

    Attributes:
        value: what it returned; None after a fault.
        fault: what went wrong, or "".
        refused: whether it ended by :class:`RefusedError`.
        signal: that ended it, or 0.
    """

    value: Any = None
    fault: str = ""
    refused: bool = False
    signal: int = 0


class Fork:
    """A fork of this process that calls a function for one case after the other.

    Args:
        function: called with a case.
        log: file of its output.
        group: whether the fork is the head of a process group, which :meth:`close` ends.
    """

    def __init__(self, function: Callable[[Any], Any], log: Path, *, group: bool = True) -> None:
        self._function, self._log, self._group = function, log, group
        self._connection, other = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads
            self.pid = os.fork()
        if self.pid == 0:
            self._connection.close()
            with contextlib.suppress(BaseException):
                self._serve(other)
            os._exit(1)
        other.close()
        self._descriptor = os.pidfd_open(self.pid)
        self.closed = False

    def start(self, case: Any = None) -> Fork:
        """Begins a call; returns this fork."""
        self._connection.send(case)
        return self

    def wait(self, seconds: float) -> Ended:
        """The end of the call; the fork is closed unless it can serve another one.

        A call may take so many seconds, which are longer where the machine has other work, too:
        ``CPU_SECONDS`` end an endless loop.
        """
        ready = wait([self._connection, self._descriptor], seconds)
        if self._connection in ready or self._connection.poll():
            with contextlib.suppress(EOFError, ConnectionError):
                ended: Ended = self._connection.recv()
                return ended
        code = self.close()
        if not ready:
            return Ended(fault=f"still running after {seconds:g} s")
        if code == -signal.SIGXCPU:
            return Ended(fault=f"still running after {CPU_SECONDS} s of the processor")
        if code < 0:
            return Ended(fault=f"ended by {signal.Signals(-code).name}", signal=-code)
        if code == _CODE_RAN:
            return Ended(fault=self._log.read_text(errors="replace").splitlines()[-1])
        return Ended(fault=f"ended with code {code}")

    def close(self) -> int:
        """Ends the fork and its group; returns the exit code."""
        if self._group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        self._connection.close()
        self.closed = True
        return os.waitstatus_to_exitcode(status)

    def _serve(self, connection: Connection) -> None:
        if self._group:
            os.setpgid(0, 0)
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        while True:
            try:
                case = connection.recv()
            except EOFError:
                os._exit(0)
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            connection.send(self._call(case))

    def _call(self, case: Any) -> Ended:
        try:
            return Ended(value=self._function(case))
        except RefusedError:
            return Ended(refused=True)
        except FaultError as error:
            return Ended(fault=str(error))
        except BaseException as error:
            traceback.print_exc()
            return Ended(fault=f"{type(error).__name__}: {error}"[:1000])


def call(function: Callable[[], Any], log: Path, seconds: float) -> Ended:
    """Calls a function in a fork, within the process group of this one."""
    fork = Fork(lambda _: function(), log, group=False).start()
    ended = fork.wait(seconds)
    if not fork.closed:
        fork.close()
    return ended


def check(right: object, fault: str) -> None:
    """Raises FaultError unless ``right``."""
    if not right:
        raise FaultError(fault)


@contextmanager
def may_refuse(*names: str) -> Iterator[None]:
    """A ValueError of one line that has one of the names is a refusal."""
    try:
        yield
    except ValueError as error:
        _check_line(str(error), names)
        raise RefusedError from error


def command(call: Callable[[], object], *names: str) -> None:
    """Calls the function of a command; code 2 after one line with one of the names is a refusal."""
    output = io.StringIO()
    code: object = 0
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            call()
        except SystemExit as stop:
            code = stop.code
        finally:
            print(output.getvalue(), file=sys.__stderr__)
    if code in (0, None):
        return
    check("Traceback" not in output.getvalue(), f"a traceback | {output.getvalue()[-300:]}")
    lines = [line for line in output.getvalue().splitlines() if line.startswith("error: ")]
    check(
        code == 2 and len(lines) == 1,
        f"ended with code {code} and {len(lines)} lines of error | {output.getvalue()[-200:]}",
    )
    rest = output.getvalue().partition("error: ")[2].strip().splitlines()
    check(len(rest) == 1, f"a message of several lines | {rest[:5]!r:.300}")
    _check_line(lines[0], names)
    raise RefusedError


def forbid_code() -> None:
    """From here on this process ends when it starts a command or connects.

    Libraries start Python itself to look for hardware.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN and arguments[0] != sys.executable:
            os.write(2, f"\ncode ran: {event}{arguments!r:.80}\n".encode())
            os._exit(_CODE_RAN)

    sys.addaudithook(hook)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _check_line(message: str, names: tuple[str, ...]) -> None:
    shown = re.sub(r"\s+", " ", message)[:200]
    check(message.strip() and "\n" not in message.strip(), f"message of several lines | {shown}")
    check(len(message) <= 1000, f"message too long | {len(message)} characters: {shown}")
    check(any(name in message for name in names), f"message without {names[0]} | {shown}")
