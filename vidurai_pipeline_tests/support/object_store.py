"""A real object store (SeaweedFS), and a proxy before it that breaks one request."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from vidurai_pipeline.cold.storage import ObjectStorage

SECRET = "a-secret-that-nobody-may-see"
BUCKET = "memories"


def free_port() -> int:
    """A port that is free, as is that for gRPC, which SeaweedFS finds 10,000 above it."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port < 55_000:
                with contextlib.suppress(OSError):
                    other.bind(("127.0.0.1", port + 10_000))
                    return port


def environment(port: int) -> dict[str, str]:
    """What a client needs to know."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[int]:
    """SeaweedFS with an empty bucket; gives the port of its S3 interface."""
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": "tester", "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port = free_port()
    command = [
        *(str(Path(sys.executable).with_name("weed")), "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3"),
        *(f"-master.port={free_port()}", f"-volume.port={free_port()}", f"-filer.port={free_port()}"),
        *(
            f"-s3.port={port}",
            f"-s3.config={folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=50",
            "-master.volumeSizeLimitMB=64",
        ),
    ]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _make_bucket(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _make_bucket(port: int) -> None:
    code = f"from obstore.store import from_url; from_url('s3://{BUCKET}/first', client_options=dict(allow_http=True))"
    until = time.monotonic() + 60
    while subprocess.run(
        [sys.executable, "-c", f"{code}.put('made', b'')"],
        env={**os.environ, **environment(port)},
        capture_output=True,
        check=False,
    ).returncode:
        assert time.monotonic() < until, "SeaweedFS does not answer"


def download(url: str, folder: Path) -> None:
    """Copy what a bucket holds to a folder, by nothing that the pipeline does."""
    storage = ObjectStorage(url)
    for key in storage.objects():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(storage.read(key)[0])


class Proxy:
    """Passes requests on, but for one.

    Args:
        folder: where it is told what to do.
        port: where it listens.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._plan = folder / "plan.json"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, folder: Path, upstream: int) -> Self:
        """Start one before an object store, given by its port."""
        proxy = cls(folder, free_port())
        proxy.pass_all()
        arguments = [str(proxy.port), str(upstream), str(folder / "plan.json")]
        proxy._process = subprocess.Popen([sys.executable, "-m", __name__, *arguments])
        return proxy

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def break_request(self, number: int, fault: str) -> None:
        """Break the nth request of this process from now on: ``cut``, ``lose`` its answer, ``busy``, or ``kill``.

        With ``deny deletes``, all that delete are refused.
        """
        plan = {"at": number, "fault": fault, "pid": os.getpid()}
        self._write(plan)

    def pass_all(self) -> None:
        """Break nothing more; requests are counted from now on."""
        self._write({})

    def requests(self) -> int:
        """How many requests have come since it was last told what to do."""
        return int(self._plan.with_suffix(".count").read_text())

    def _write(self, plan: dict) -> None:
        self._plan.with_suffix(".count").write_text("0")
        self._plan.with_suffix(".next").write_text(json.dumps(plan))
        self._plan.with_suffix(".next").replace(self._plan)


def _serve(port: int, upstream: int, plan_file: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.close_connection = True
            plan, counter = json.loads(plan_file.read_text()), plan_file.with_suffix(".count")
            number = int(counter.read_text() or 0) + 1 if counter.exists() else 1
            counter.write_text(str(number))
            fault = plan.get("fault") if number == plan.get("at") else None
            if fault == "kill":
                os.kill(plan["pid"], signal.SIGKILL)
            if fault in {"cut", "kill"}:
                return
            if plan.get("fault") == "deny deletes" and self.command == "POST":
                why = rb"<Error>\1<Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                denied = re.sub(rb".*?(<Key>.*?</Key>).*", rb"<DeleteResult>" + why + rb"</DeleteResult>", body)
                self.send_response(200)
                self.send_header("Content-Length", str(len(denied)))
                self.end_headers()
                self.wfile.write(denied)
                return
            if fault == "busy":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if fault == "lose":
                return
            if fault == "lose and kill":
                os.kill(plan["pid"], signal.SIGKILL)
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
