"""A server on loopback that can misbehave, also in place of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

HUB = "/hub"


class Server(ThreadingHTTPServer):
    """Serves ``files``; each GET of one is noted in ``asked`` with its Range.

    Below ``HUB`` it answers like the Hugging Face hub for a large file: a redirect to another
    host, with the size and the SHA-256 in its headers.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.stop_after: list[int] = []  # bytes after which the next answers break off
        self.ranges = True
        self.promised: str | None = None  # SHA-256 to send in place of the right one
        self.size: int | None = None  # promised by the hub in place of the right one
        self.headers: dict[str, str | None] = {}  # to send in place of the usual ones; None: not
        self.may_answer = threading.Event()  # bodies are sent when it is set
        self.may_answer.set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/storage"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        if self.path.removeprefix("/storage") in self.server.files:
            self.server.asked.append((self.path, self.headers.get("Range")))
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.server.files.get(self.path.removeprefix("/storage"))
        if content is None:
            self.send_error(404)
            return
        if self.path.startswith(HUB):
            digest = self.server.promised or hashlib.sha256(content).hexdigest()
            self.send_response(302)
            self.send_header("Location", self.server.storage + self.path)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("X-Linked-Size", str(self.server.size or len(content)))
            self.send_header("X-Linked-ETag", f'"{digest}"')
            content = b""
        elif (asked := self.headers.get("Range")) and self.server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            self.send_response(200)
        headers = {"Content-Length": str(len(content)), **self.server.headers}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if body and content:
            self.server.may_answer.wait()
            end = self.server.stop_after.pop(0) if self.server.stop_after else None
            with suppress(ConnectionError):  # of a client that has read enough
                self.wfile.write(content[:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """What HF_ENDPOINT, HF_HOME and TORCH_HOME do to a process that starts with them."""
    monkeypatch.setattr(constants, "ENDPOINT", f"{url}{HUB}")
    template = f"{url}{HUB}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
