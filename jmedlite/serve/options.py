"""Options of `jmedlite serve`; the command line's help needs this: nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from jmedlite.base.errors import UsageError
from jmedlite.base.options import check, option

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class ServeOptions:
    """Who may ask, and how many at once.

    Other machines reach a `host` that is not this machine's own (loopback) only with a key, and encrypted: by a
    certificate, or by a proxy that does it. `queue` are questions that wait beside the `parallel` ones.
    """

    host: str = option(LOOPBACK, metavar="ADDRESS", help="Address to listen on; other than this machine's needs a key.")
    port: int = option(8080, low=0, high=65535, help="Port; 0: any that is free.")
    parallel: int = option(4, flags=("--parallel", "-n"), low=1, high=64, help="Questions answered at once.")
    queue: int = option(16, low=0, high=10_000, help="Questions that may wait; more are refused at once.")
    key_file: str | None = option(None, typed=Path, read=str, metavar="FILE", help="File with the key.")
    tls_cert: str | None = option(None, typed=Path, read=str, metavar="FILE", help="Certificate (PEM), for https.")
    tls_key: str | None = option(None, typed=Path, read=str, metavar="FILE", help="Its private key (PEM).")
    behind_proxy: bool = option(False, help="A proxy encrypts: listen without https on an address of the network.")
    allow_host: tuple[str, ...] = option((), typed=str, metavar="NAME", help="A name this server is reached by.")
    open: bool = option(False, help="Open the page in the browser.")

    def __post_init__(self) -> None:
        check(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key belong together; give both")
        if not (self.is_local or self.tls_cert or self.behind_proxy):
            raise UsageError(
                f"--host {self.host}: questions would cross the network unencrypted; give --tls-cert and --tls-key, or "
                "--behind-proxy where a proxy encrypts"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
