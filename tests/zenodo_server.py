"""A server on 127.0.0.1 that speaks what matters of Zenodo's API and file download, with faults on demand."""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    kind : status (answer `status` with `headers`), truncate (a body that ends after `after` bytes), reset (connection reset after
    `after` bytes), stall (silence of `seconds` after `after` bytes), wrong (one byte differs), change (from this answer on the file is
    `content`, before anything is sent), no_range (the range is ignored), slow (`seconds` between blocks).
    """

    kind: str
    after: int = 0
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    content: bytes = b""


class ZenodoServer:
    """Records (`records[id][file name] = bytes`) and other files (`files[path] = bytes`, for label lists), over HTTP.

    `faults[part of the path]` is a queue: each request whose path contains the part takes the first fault. `log` holds (path, range).
    With a `meeting` a transfer waits until as many run as the barrier has parties.
    """

    def __init__(self) -> None:
        self.records: dict[int, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.log: list[tuple[str, str | None]] = []
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.block = 1 << 14
        self.pause = 0.0
        self.meeting: threading.Barrier | None = None
        self.address = ""

    def requests_for(self, part: str) -> list[str | None]:
        """Ranges of the requests whose path contains `part`."""
        return [wanted for path, wanted in self.log if part in path]

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for part, queue in self.faults.items():
                if part in path and queue:
                    return queue.pop(0)
        return None

    def content_of(self, path: str) -> bytes | None:
        if match := re.fullmatch(r"/api/records/(\d+)", path):
            record = self.records.get(int(match[1]))
            return None if record is None else api_answer(record)
        if match := re.fullmatch(r"/records/(\d+)/files/([^/]+)", path):
            return self.records.get(int(match[1]), {}).get(match[2])
        return self.files.get(path.lstrip("/"))

    def change(self, path: str, content: bytes) -> None:
        match = re.fullmatch(r"/records/(\d+)/files/([^/]+)", path)
        assert match is not None
        self.records[int(match[1])][match[2]] = content


def api_answer(record: dict[str, bytes]) -> bytes:
    """The part of Zenodo's description of a record that lists its files."""
    files = [
        {"key": name, "size": len(content), "checksum": "md5:" + hashlib.md5(content).hexdigest()}
        for name, content in record.items()
    ]
    return json.dumps({"files": files, "metadata": {"license": {"id": "cc-by-4.0"}}}).encode()


@contextlib.contextmanager
def serving(server: ZenodoServer) -> Iterator[ZenodoServer]:
    """Serve in threads until the block ends; `server.address` is the base address."""

    class Handler(_Handler):
        zenodo = server

    with _Quiet(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    zenodo: ZenodoServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        zenodo = self.zenodo
        with zenodo.lock:
            zenodo.log.append((path, self.headers.get("Range")))
        fault = zenodo.fault_for(path)
        if fault is not None and fault.kind == "change":
            zenodo.change(path, fault.content)
            fault = None
        if fault is not None and fault.kind == "status":
            self._send_status(fault.status, fault.headers)
            return
        content = zenodo.content_of(path)
        if content is None:
            self._send_status(404)
            return
        with zenodo.lock:
            zenodo.running += "/files/" in path
            zenodo.most_running = max(zenodo.most_running, zenodo.running)
        try:
            if zenodo.meeting is not None and "/files/" in path:
                with contextlib.suppress(threading.BrokenBarrierError):
                    zenodo.meeting.wait(timeout=20)
            self._send_content(content, fault)
        finally:
            with zenodo.lock:
                zenodo.running -= "/files/" in path

    def _send_status(self, status: int, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_content(self, content: bytes, fault: Fault | None) -> None:
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and not (fault and fault.kind == "no_range"):
            start = int(match[1])
            if start >= len(content):
                self._send_status(416, (("Content-Range", f"bytes */{len(content)}"),))
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if fault and fault.kind == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send_body(body, fault)

    def _send_body(self, body: bytes, fault: Fault | None) -> None:
        breaks = fault is not None and fault.kind in ("truncate", "reset", "stall")
        end = fault.after if fault is not None and breaks else len(body)
        for position in range(0, end, self.zenodo.block):
            self.wfile.write(body[position : min(end, position + self.zenodo.block)])
            time.sleep(self.zenodo.pause)
        if fault is None or not breaks:
            return
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault.kind == "reset":
            time.sleep(0.05)  # the bytes before the reset are to arrive
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
