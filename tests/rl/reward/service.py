"""An HTTP service that scores samples, or does any of what services do instead."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from raymill.rl.reward.http import Endpoint


class Service(ThreadingHTTPServer):
    """Service whose paths select its behavior; records `bodies`, and counts `attempts` by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.attempts: dict[str, int] = {}
        self.stop = threading.Event()
        # Nobody is answered until so many ask at once.
        self.together = threading.Barrier(8)

    def endpoint(self, path: str, timeout_s: float = 5.0, **others: Any) -> Endpoint:
        address = f"http://127.0.0.1:{self.server_port}/{path}"
        return Endpoint(address, timeout_s=timeout_s, **others)

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up are what is tested


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        path = self.path.strip("/")
        count = self.server.attempts[path] = self.server.attempts.get(path, 0) + 1
        path = path.partition("?")[0]
        if path == "length":
            time.sleep(0.02 * (len(body["answer"]) % 3))
            self.reply(200, {"reward": len(body["answer"])})
        elif path == "together":
            self.server.together.wait(20)
            self.reply(200, {"reward": 1})
        elif path.startswith("status"):
            self.reply(int(path[6:]), {"reward": 1.0})
        elif path == "recovers":
            self.reply(503 if count < 3 else 200, {"reward": 0.5})
        elif path == "resets" and count < 2:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif path == "resets":
            self.reply(200, {"reward": 0.5})
        elif path == "hangs":
            self.server.stop.wait(20)
        elif path == "drips":
            self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000)
        elif path == "drips_headers":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 60_000)
        elif path == "no_http":
            self.wfile.write(b"\x00\xff garbage\r\n\r\n")
        elif path == "short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}")
        elif path == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                self.wfile.write(b" " * 10**6)

    def reply(self, status: int, body: object) -> None:
        self.send_raw(status, json.dumps(body).encode())

    def send_raw(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, text: bytes) -> None:
        for place in range(len(text)):
            self.wfile.write(text[place : place + 1])
            if self.server.stop.wait(0.05):
                return

    def log_message(self, *_: Any) -> None:
        pass
