"""`vidurai-pipeline` and Python for tests that need a process: each is a fork of one that has imported everything.

A new Python takes a second or two to import Dagster; a fork takes some milliseconds.
"""

import contextlib
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
umask = os.umask(0)
request = json.dumps([sys.argv, dict(os.environ), os.getcwd(), umask]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    code = int(server.recv(8))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
#: As the script `vidurai-pipeline` does.
COMMAND_LINE = "import sys; from vidurai_pipeline.cli.main import main; sys.exit(main())"
#: What the commands import, and is slow.
IMPORTS = (
    "pyarrow.dataset",
    "tantivy",
    "vidurai_pipeline.archival.eraser",
    "vidurai_pipeline.archival.restorer",
    "vidurai_pipeline.care.compaction",
    "vidurai_pipeline.defs.maintenance",
    "vidurai_pipeline.rl.dreamer",
)


@contextlib.contextmanager
def fork_server(folder: Path) -> Iterator[Path]:
    """Run the server; gives a folder with the programs ``vidurai-pipeline`` and ``python``, which knows only ``-c``."""
    programs, address = folder / "bin", folder / "socket"
    programs.mkdir()
    for name in ("vidurai-pipeline", "python"):
        (programs / name).write_text(CLIENT.format(python=sys.executable, address=str(address)))
        (programs / name).chmod(0o755)
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    code = f"import sys; from {__name__} import serve; exec(serve(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(address)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        yield programs
        server.terminate()


def serve(address: str) -> str:
    """Fork for each request; returns in the fork, which is then the wanted process, with the code that it is to run."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # else each fork's collections copy all pages
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)  # noqa: T201  (to the process that waits for it)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    with connection:
        return _become(connection)


def _become(connection: socket.socket) -> str:
    """Become what a client asks for, in a further fork; this one tells the client how that ends."""
    size, streams, *_ = socket.recv_fds(connection, 8, 3)
    wanted, request = int.from_bytes(size, "big"), b""
    while len(request) < wanted:
        request += connection.recv(wanted)
    child = os.fork()
    if child:
        for stream in (0, 1, 2, *streams):  # else a reader of the output would wait for this process, too
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(str(code).encode())
        os._exit(0)
    sys.argv, environment, cwd, umask = json.loads(request)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    os.umask(umask)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if sys.argv[1:2] != ["-c"]:
        return COMMAND_LINE
    del sys.argv[0]
    return sys.argv.pop(1)
