"""An ordinary application that tests run inside a sandbox: pages, forms, events, a WebSocket. Standard library only.

python3 application.py PORT [NAME]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = """<!doctype html><title>{name}</title><h1>{name}</h1>
<a id=next href="/second?x=1">next</a>
<form method=post action="/form"><input name=word value=hello><button id=send>send</button></form>
<p id=socket></p>
<script>
document.cookie = "own={name}; path=/";
const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
socket.onopen = () => socket.send("ping from the page");
socket.onmessage = event => document.getElementById("socket").textContent = event.data;
</script>
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = "application"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, kind: str = "text/plain", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            data = self.rfile.read(min(left, 65536))
            left -= len(data)
            yield data

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        handler = getattr(self, "at_" + parts.path.strip("/").replace("/", "_"), None)
        if parts.path == "/":
            self.answer(PAGE.format(name=self.name).encode(), "text/html", Set_Cookie="seen=1; Path=/; HttpOnly")
        elif handler is None:
            self.answer(b"no such page", status=404)
        else:
            handler(query)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def at_request(self, query: dict[str, str]) -> None:
        body = b"".join(self.body())
        told = {
            "method": self.command,
            "path": self.path,
            "headers": self.headers.items(),
            "body": body.decode("latin-1"),
        }
        self.answer(json.dumps(told).encode(), "application/json", X_Own="yes")

    def at_request_trailing(self, query: dict[str, str]) -> None:
        self.answer(self.path.encode())

    def at_echo(self, query: dict[str, str]) -> None:
        self.begin("application/octet-stream")
        for data in self.body():
            self.chunk(data)
        self.chunk(b"")

    def at_sum(self, query: dict[str, str]) -> None:
        digest = hashlib.sha256()
        for data in self.body():
            digest.update(data)
        self.answer(digest.hexdigest().encode())

    def at_big(self, query: dict[str, str]) -> None:
        self.begin("application/octet-stream")
        piece = bytes(range(256)) * 256
        for _ in range(int(query["mib"]) * 16):
            self.chunk(piece)
        self.chunk(b"")

    def at_events(self, query: dict[str, str]) -> None:
        self.begin("text/event-stream")
        for number in range(int(query.get("count", 3))):
            self.chunk(f"data: {number}\n\n".encode())
            time.sleep(float(query.get("pause", 0.2)))
        self.chunk(b"")

    def at_cut(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"only this")
        self.wfile.flush()
        self.close_connection = True

    def at_garbage(self, query: dict[str, str]) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")
        self.close_connection = True

    def at_hang(self, query: dict[str, str]) -> None:
        time.sleep(float(query["seconds"]))
        self.answer(b"at last")

    def at_early(self, query: dict[str, str]) -> None:
        self.answer(b"too long", status=413, Connection="close")
        self.close_connection = True

    def at_abrupt(self, query: dict[str, str]) -> None:
        self.wfile.write(b"HTTP/1.0 413 Too much\r\n\r\nno more, thank you")
        self.connection.recv(1, socket.MSG_PEEK)  # with something unread, closing resets the connection
        self.close_connection = True
        os.close(self.connection.detach())

    def at_login(self, query: dict[str, str]) -> None:
        cookie = "session=abc; Path=/; Domain=example.com; HttpOnly"
        self.answer(b"", status=302, Location=query.get("to", "/second"), Set_Cookie=cookie)

    def at_steal(self, query: dict[str, str]) -> None:
        self.answer(b"tried", Set_Cookie="sandboxrt-service=forged; Path=/")

    def at_second(self, query: dict[str, str]) -> None:
        self.answer(b"<!doctype html><title>second</title><a id=home href='/'>home</a>", "text/html")

    def at_form(self, query: dict[str, str]) -> None:
        body = b"".join(self.body()).decode()
        self.answer(f"<!doctype html><title>form</title><p id=got>{self.command} {body}</p>".encode(), "text/html")

    def at_ws(self, query: dict[str, str]) -> None:
        if self.headers.get("Upgrade", "").lower() != "websocket":
            self.answer(b"a WebSocket, please", status=426)
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            opcode, data = self.frame()
            if opcode in (8, -1):
                return
            self.send_frame(opcode, f"{self.name}: ".encode() + data if opcode == 1 else data)

    def frame(self) -> tuple[int, bytes]:
        head = self.rfile.read(2)
        if len(head) < 2:
            return -1, b""
        length = head[1] & 127
        if length == 126:
            (length,) = struct.unpack(">H", self.rfile.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.rfile.read(8))
        mask = self.rfile.read(4)
        data = self.rfile.read(length)
        key = (mask * (length // 4 + 1))[:length]
        plain = (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
        return head[0] & 15, plain

    def send_frame(self, opcode: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = struct.pack(">BB", 128 | opcode, size)
        elif size < 65536:
            head = struct.pack(">BBH", 128 | opcode, 126, size)
        else:
            head = struct.pack(">BBQ", 128 | opcode, 127, size)
        self.wfile.write(head + data)
        self.wfile.flush()


if __name__ == "__main__":
    Handler.name = sys.argv[2] if len(sys.argv) > 2 else "application"
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    threading.stack_size(256 * 1024)
    print("serving", flush=True)
    server.serve_forever()
