"""What a bare machine lacks: Debian packages are installed where we may, named where not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class ServiceUnavailable(Exception):  # noqa: N818 - it reads as what it says
    """A real part cannot be had here; the message says why and what to do."""


def cache_folder() -> Path:
    """Where downloads are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "folio-events"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Lets one run at a time install or download; the others wait, then find it done."""
    with (cache_folder() / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(part: str, packages: list[str]) -> None:
    """Installs Debian packages as root; raises ServiceUnavailable anywhere else."""
    command = f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        message = f"{part} cannot be started here. On Debian or Ubuntu: sudo {command}"
        raise ServiceUnavailable(message)
    sys.stderr.write(f"{part} cannot be started here yet; running {command}\n")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (
        ["update", "-q"],
        ["install", "-q", "-y", "--no-install-recommends", *packages],
    ):
        result = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=300", *step],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            message = f"{part}: apt-get {step[0]} failed:\n{result.stdout[-2000:]}"
            raise ServiceUnavailable(message)
