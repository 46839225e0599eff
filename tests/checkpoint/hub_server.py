"""A server on the loopback that answers like the Hub, for one repository held in memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.requests.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        for name, content in self.files.items():
            if path in (f"/org/tiny/resolve/{COMMIT}/{name}", f"/org/tiny/resolve/main/{name}"):
                return self._answer(200, content)
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        if path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
            return self._answer(
                200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            )
        if path.startswith("/api/models/org/tiny/tree/"):
            tree = [
                {"type": "file", "oid": _etag(content), "size": len(content), "path": name}
                for name, content in self.files.items()
            ]
            return self._answer(200, json.dumps(tree).encode())
        return self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_etag(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve the repository ``org/tiny``; the address, and the list of requests as they come."""
    handler = type("Handler", (_Handler,), {"files": files, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
