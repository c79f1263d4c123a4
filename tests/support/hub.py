"""The environment in which a process takes a server on this machine for the Hub."""

from __future__ import annotations

import os
from pathlib import Path

# the Hub client waits seconds before it tries again, which is nothing that a test wants to know
HURRY = "import time\nreal = time.sleep\ntime.sleep = lambda seconds: real(min(seconds, 0.01))\n"


def hub_environment(url: str, folder: Path, **env: str) -> dict[str, str]:
    """All of this process's but proxies and HF_*; the cache is in `folder`, and the client's pauses are short."""
    (folder / "hurry").mkdir(exist_ok=True)
    (folder / "hurry" / "sitecustomize.py").write_text(HURRY)
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "PYTHONPATH": str(folder / "hurry"), **env,
    }  # fmt: skip
