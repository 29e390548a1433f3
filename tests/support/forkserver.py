"""A process that imports what the stages import, once, and forks for each stage that a loop runs.

A `python` that comes first on PATH hands `-m stages.NAME` to it: arguments, folder, environment and streams. The loop
is the user's but for the imports, which are most of a stage on a tiny model. The fork is no descendant of its `dvc`, so
loops in which something is killed run without it.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

IMPORTED = (
    "torch", "torchvision", "diffusers.loaders.peft", "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.schedulers", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.t5.modeling_t5",
    "transformers.models.umt5.modeling_umt5", "transformers.models.clip.modeling_clip", "peft", "pandas", "pyarrow",
    "scipy.stats", "matplotlib.pyplot", "av", "dvc.repo",
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] != ["-m"] or sys.argv[2].split(".")[0] not in ("commands", "stages"):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(16)))
"""


@contextlib.contextmanager
def forkserver(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which `python -m stages.NAME` is a fork of a process that lives until the end."""
    with tempfile.TemporaryDirectory() as folder:
        address, client = Path(folder) / "socket", Path(folder) / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:  # who connects before the server has imported all waits for it
            listener.bind(str(address))
            listener.listen()
            number = listener.fileno()
            server = subprocess.Popen([sys.executable, __file__, str(number)], env=environment, pass_fds=[number])
        try:
            yield environment | {"PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
        finally:
            server.kill()
            server.wait()


def serve(listener: socket.socket) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that looked through all of this would copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answer(client)
            return
        client.close()


def answer(client: socket.socket) -> None:
    """Fork for one stage, and say how it ended."""
    size, streams, *_ = socket.recv_fds(client, 8, 3)
    arguments, folder, environment = json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
    if pid := os.fork():
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        client.sendall(str(ended).encode())
        return
    client.close()
    for stream, place in zip(streams, (0, 1, 2), strict=True):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = arguments, folder
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        ended = 0
    except SystemExit as error:
        ended = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        ended = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # to take all modules down takes seconds


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
