"""What a container leaves of the machine, by files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmedlite.runtime import hardware
from jmedlite.runtime.cgroup import cpu_quota, memory_left

GB = 10**9


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def read(tmp_path: Path, groups: str) -> tuple[float | None, int | None]:
    (tmp_path / "groups").write_text(groups)
    return cpu_quota(tmp_path / "fs", tmp_path / "groups"), memory_left(tmp_path / "fs", tmp_path / "groups")


def test_version_2_and_the_groups_above(tmp_path: Path) -> None:
    inner, outer = tmp_path / "fs" / "user" / "job", tmp_path / "fs" / "user"
    write(inner, cpu__max="max 100000", memory__max="max", memory__current="1", memory__stat="inactive_file 0")
    assert read(tmp_path, "0::/user/job\n") == (None, None)
    write(outer, cpu__max="150000 100000", memory__max=str(4 * GB), memory__current=str(3 * GB))
    write(outer, memory__stat=f"anon 5\ninactive_file {GB}")
    assert read(tmp_path, "0::/user/job\n") == (1.5, 2 * GB)
    write(inner, cpu__max="50000 100000")
    assert read(tmp_path, "0::/user/job\n") == (0.5, 2 * GB)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path / "fs", cpu__max="100000 100000", memory__max=str(GB), memory__current="0", memory__stat="")
    assert read(tmp_path, "0::/\n") == (1.0, GB)
    assert read(tmp_path, "0::/docker/abc\n") == (1.0, GB)
    (tmp_path / "groups").unlink()
    assert cpu_quota(tmp_path / "fs", tmp_path / "groups") == 1.0


def test_version_1(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "cpu,cpuacct" / "job", **{"cpu__cfs_quota_us": "200000", "cpu__cfs_period_us": "100000"})
    write(tmp_path / "fs" / "cpu,cpuacct", **{"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"})
    write(tmp_path / "fs" / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="5")
    write(tmp_path / "fs" / "memory" / "job", memory__limit_in_bytes=str(GB), memory__usage_in_bytes=str(GB // 2))
    write(tmp_path / "fs" / "memory" / "job", memory__stat=f"inactive_file 7\ntotal_inactive_file {GB // 4}")
    assert read(tmp_path, "4:cpu,cpuacct:/job\n3:memory:/job\n2:cpuset:/\n") == (2.0, 3 * GB // 4)


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert read(tmp_path, "") == (None, None)
    assert read(tmp_path, "nonsense\n0::/x\n") == (None, None)


def test_the_machine_is_no_larger_than_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, free = hardware.available_processors(), hardware.free_ram()
    monkeypatch.setattr(hardware, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(hardware, "memory_left", lambda: 1000)
    assert (hardware.available_processors(), hardware.physical_cores(), hardware.free_ram()) == (1, 1, 1000)
    monkeypatch.setattr(hardware, "cpu_quota", lambda: 1000.0)
    monkeypatch.setattr(hardware, "memory_left", lambda: -5)
    assert hardware.available_processors() == whole
    assert hardware.free_ram() == 0 < free
