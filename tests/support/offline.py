"""No network: commands in a namespace without interfaces, every attempt to connect reported by Python itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ISOLATE = ["unshare", "--user", "--map-root-user", "--net"]  # not even the loopback is up there
# Python's own view: every name looked up and every socket connected, bound or sent through, in the children too
AUDIT = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"):
        sys.stderr.write(f"NETWORK {event} {arguments[1:]}\\n")
sys.addaudithook(watch)
"""


def allowed(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def watched(folder: Path) -> dict[str, str]:
    """The environment that makes Python report attempts; `folder` is written to."""
    (folder / "sitecustomize.py").write_text(AUDIT)
    return {"PYTHONPATH": str(folder), "PYTHONUTF8": "1"}
