"""Ceph's object gateway on this machine: a monitor, one disk in memory, and a server that speaks the protocol of S3.

Debian has it: `make stores` installs it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from free_ports import free_ports, wait_for

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_CLUSTER, _DISK = "11111111-2222-4333-8444-555555555555", "22222222-2222-4333-8444-555555555555"
_CONFIGURATION = """
[global]
fsid = {cluster}
mon host = v2:127.0.0.1:{monitor_port}
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
keyring = {folder}/keyring
mon data avail warn = 1
mon data avail crit = 1
run dir = {folder}
log file = {folder}/$name.log
admin socket =
pid file =
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
"""


def has_radosgw() -> bool:
    """Whether it is installed."""
    return all(map(shutil.which, PROGRAMS))


@contextmanager
def radosgw(folder: Path, access_key: str, secret_key: str) -> Iterator[str]:
    """Start it in a folder of its own; gives the URL of its endpoint, whose one user has these keys."""
    monitor_port, port = free_ports(2)
    configuration = folder / "ceph.conf"
    names = {"cluster": _CLUSTER, "monitor_port": monitor_port, "port": port, "folder": folder}
    configuration.write_text(_CONFIGURATION.format_map(names))
    cluster = _Cluster(configuration)
    try:
        cluster.begin(f"[v2:127.0.0.1:{monitor_port}]")
        cluster.start("radosgw", "-n", "client.rgw.a")
        wait_for(port)
        user = ("--uid", "tests", "--display-name", "tests", "--access-key", access_key, "--secret", secret_key)
        cluster.run("radosgw-admin", "user", "create", *user)
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.end()


class _Cluster:
    def __init__(self, configuration: Path) -> None:
        self._folder, self._configuration = configuration.parent, configuration
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self, address: str) -> None:
        """Start a new monitor and a new disk."""
        for name in ("mon", "osd"):
            (self._folder / name).mkdir()
        monitors = str(self._folder / "monmap")
        self.run("ceph-authtool", "--create-keyring", str(self._folder / "keyring"), "--gen-key", "-n", "client.rgw.a")
        self.run("monmaptool", "--create", "--fsid", _CLUSTER, "--addv", "a", address, monitors)
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self.start("ceph-mon", "-i", "a")
        self.run("ceph", "osd", "new", _DISK)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", _DISK)
        self.start("ceph-osd", "-i", "0")

    def run(self, *command: str) -> None:
        """Run a command to its end."""
        done = subprocess.run(self._with_configuration(command), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, (command, done.stderr)

    def start(self, *command: str) -> None:
        """Start a process that stays."""
        program = self._with_configuration((*command, "-f"))
        quiet = subprocess.DEVNULL
        self._processes.append(subprocess.Popen(program, cwd=self._folder, stdout=quiet, stderr=quiet))

    def end(self) -> None:
        """End all processes."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _with_configuration(self, command: Sequence[str]) -> Sequence[str]:
        return [command[0], "-c", str(self._configuration), *command[1:]]
