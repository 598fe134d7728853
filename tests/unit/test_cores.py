import math
from pathlib import Path

import pytest
from percore import cores
from percore.errors import SettingsError


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_version_2_quota_is_read(tmp_path: Path) -> None:
    write(tmp_path / "mount/pod", cpu__max="150000 100000\n")
    (tmp_path / "cgroup").write_text("0::/pod\n")
    assert cores.cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == 1.5


def test_a_version_1_quota_is_read(tmp_path: Path) -> None:
    write(tmp_path / "mount/cpu,cpuacct/pod", cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    (tmp_path / "cgroup").write_text("5:memory:/pod\n4:cpu,cpuacct:/pod\n")
    assert cores.cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == 4


def test_the_smallest_quota_of_a_cgroup_and_its_parents_counts(tmp_path: Path) -> None:
    write(tmp_path / "mount/a", cpu__max="200000 100000")
    write(tmp_path / "mount/a/b", cpu__max="max 100000")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert cores.cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == 2


def test_if_the_path_of_a_cgroup_is_not_mounted_the_quota_of_the_root_counts(tmp_path: Path) -> None:
    write(tmp_path / "mount", cpu__max="300000 100000")
    (tmp_path / "cgroup").write_text("0::/kubepods/pod1/abc\n")
    assert cores.cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == 3


@pytest.mark.parametrize("text", ["max 100000", "-1 100000", "what", ""])
def test_no_quota_is_no_bound(tmp_path: Path, text: str) -> None:
    write(tmp_path / "mount", cpu__max=text)
    (tmp_path / "cgroup").write_text("0::/\n")
    assert cores.cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == math.inf


def test_no_cgroup_at_all_is_no_bound(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [((0, 1, 2, 3), math.inf, (0, 1, 2, 3)), ((4, 6), 8, (4, 6)), ((0, 1, 2, 3), 2.5, (0, 1)), ((3,), 0.2, (3,))],
)
def test_cores_come_from_the_cpuset_up_to_the_whole_cpus_of_the_quota(
    affinity: tuple[int, ...], quota: float, expected: tuple[int, ...]
) -> None:
    assert cores.usable_cores(affinity, quota) == expected


def test_cores_are_divided_into_whole_groups() -> None:
    assert cores.core_groups((0, 1, 2, 3, 4), 2) == ((0, 1), (2, 3))


def test_more_cores_for_a_call_than_there_are_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"PERCORE_CORES_PER_CALL=3: .* 2"):
        cores.core_groups((0, 1), 3)


def test_two_claims_get_different_cores_and_a_third_gets_none(tmp_path: Path) -> None:
    groups = ((0,), (1,))
    claims = [cores.try_claim(tmp_path, groups) for _ in range(3)]
    assert [claim and claim.cores for claim in claims] == [(0,), (1,), None]


def test_a_claim_waits_until_the_holder_is_gone(tmp_path: Path) -> None:
    held = cores.try_claim(tmp_path, ((7,),))
    assert held is not None
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            held.lock.close()

    assert cores.claim(tmp_path, ((7,),), sleep).cores == (7,)
    assert len(naps) == 3
