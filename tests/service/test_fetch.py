"""`percore fetch` as a process, from real servers with real faults."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from percore.fetch import digest
from percore.fetch.transfer import SMALLEST_PART

from harness.service import MODELS, ROOT, Service
from tests.stores import AZURITE, FAKE_GCS, Site, azure, google, s3

LARGE = random.Random(0).randbytes(40_000_000)
"""Five parts, the last of them short."""

PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the peak memory of a command in KiB. A process of its own, because a child begins with the peak of its parent."""


class Fetched:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        lines = done.stderr.splitlines()
        self.messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
        self.error = "".join(line for line in lines if line.startswith("percore: "))
        self.output = done.stdout
        self.everything = done.stdout + done.stderr


def command(uri: str, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "percore", "fetch", uri, str(folder), *more]


def environment(**settings: object) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if not key.startswith(("PERCORE_", "AWS_", "AZURE_", "GOOGLE_"))}
    return {
        **given,
        **{key if key.startswith(("AWS_", "AZURE_")) else f"PERCORE_{key}": str(value) for key, value in settings.items()},
    }


def fetch(uri: str, folder: Path, *more: str, **settings: object) -> Fetched:
    return run(command(uri, folder, *more), **settings)


def run(line: list[str], **settings: object) -> Fetched:
    given = environment(**{"LOAD_TIMEOUT": 60, **settings})
    return Fetched(subprocess.run(line, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False))


def archive_of(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc"
    return member


ARCHIVE = archive_of(("1/saved_model.pb", b"graph"), ("1/variables/data", LARGE))


def parts() -> list[str]:
    """Return the ranges of all parts of the archive."""
    return [f"bytes={at}-{min(at + SMALLEST_PART, len(ARCHIVE)) - 1}" for at in range(0, len(ARCHIVE), SMALLEST_PART)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An https server with the archive of a model."""
    opened = Site(tmp_path, ARCHIVE)
    yield opened
    opened.close()


def holds_all(folder: Path) -> bool:
    return (folder / "a/1/variables/data").read_bytes() == LARGE and (folder / "a/1/saved_model.pb").read_bytes() == b"graph"


def digest_of(content: bytes) -> str:
    return digest.PREFIX + hashlib.sha256(content).hexdigest()


def digest_of_folder(folder: Path) -> str:
    files = (each for each in folder.rglob("*") if each.is_file())
    return digest.of_folder({str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files})


# --- stores ---


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_certificates_is_named_before_anything_is_fetched(tmp_path: Path, site: Site, text: str) -> None:
    path = tmp_path / "bundle.pem"
    path.write_text(text)
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=path)
    assert done.error == f"percore: cannot fetch: PERCORE_FETCH_CA_FILE={path}: must hold valid certificates in PEM"
    assert site.paths == []


def test_a_folder_of_an_s3_store_is_fetched_and_served_and_its_digest_is_known_everywhere(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "digits", tmp_path / "buckets/bucket/some models/digits")
    with s3(tmp_path / "buckets") as (endpoint, credentials):
        done = fetch("s3://bucket/some models/digits", tmp_path / "models", FETCH_ENDPOINT=endpoint, **credentials)
    assert done.status == 0, done.everything
    known = digest_of_folder(MODELS / "digits")
    assert done.messages[-1].endswith(f"holds the models of s3://bucket/some models/digits, digest {known}")
    with Service(model_repository=tmp_path / "models") as service:
        service.ready()
        answer = service.post("/v1/models/digits:predict", {"instances": [[0.0] * 64]})
        assert answer.status_code == 200
        assert service.get("/v1/models/digits").json()["model_version_status"][0]["digest"] == known
        assert service.get("/v2/models/digits").json()["parameters"] == {"digest": known}
        assert service.metric("percore_model_info", model="digits", version="1", digest=known) == 1
        assert service.log(f"model 'digits' version 1 is loaded, digest {known}")


@pytest.mark.skipif(not AZURITE.exists(), reason="needs azurite: tools/install-test-programs installs it")
def test_models_come_from_azure_and_a_wrong_key_is_one_sentence_without_it(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "digits", tmp_path / "buckets/container/some models/digits")
    with azure(tmp_path / "buckets") as (endpoint, credentials):
        done = fetch("az://container/some models/digits", tmp_path / "models", FETCH_ENDPOINT=endpoint, **credentials)
        wrong = {**credentials, "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}
        refused = fetch("az://container/some models/digits", tmp_path / "other", FETCH_ENDPOINT=endpoint, **wrong)
    assert done.status == 0, done.everything
    assert done.messages[-1].endswith(f"digest {digest_of_folder(MODELS / 'digits')}")
    assert digest_of_folder(tmp_path / "models/digits") == digest_of_folder(MODELS / "digits")
    assert re.fullmatch(r"percore: cannot fetch: az://container/.* the server answers 403 .*", refused.error), refused.error
    assert "c2VjcmV0" not in refused.everything


@pytest.mark.skipif(FAKE_GCS is None, reason="needs fake-gcs-server: tools/install-test-programs installs it if there is Go")
def test_models_come_from_google_cloud_storage_also_in_several_parts(tmp_path: Path) -> None:
    (tmp_path / "buckets/bucket/some models").mkdir(parents=True)
    (tmp_path / "buckets/bucket/some models/a.tar.gz").write_bytes(ARCHIVE)
    with google(tmp_path / "buckets") as (endpoint, public):
        done = fetch("gs://bucket/some models/a.tar.gz", tmp_path / "models", FETCH_ENDPOINT=endpoint, **public)
        nothing = fetch("gs://bucket/nothing", tmp_path / "other", FETCH_ENDPOINT=endpoint, **public)
    assert done.status == 0, done.everything
    assert holds_all(tmp_path / "models")
    assert done.messages[-1].endswith(f"digest {digest_of(ARCHIVE)}")
    assert nothing.error == "percore: cannot fetch: gs://bucket/nothing has no files"


def test_wrong_credentials_are_one_sentence_without_them(tmp_path: Path) -> None:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with s3(tmp_path / "buckets") as (endpoint, credentials):
        wrong = {**credentials, "AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}
        done = fetch("s3://bucket/models", tmp_path / "models", FETCH_ENDPOINT=endpoint, **wrong)
    assert done.status == 78
    assert re.fullmatch(r"percore: cannot fetch: s3://bucket/models .*the server answers 403 .*", done.error), done.error
    assert "wrong-and-secret" not in done.everything


def test_an_empty_prefix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with s3(tmp_path / "buckets") as (endpoint, credentials):
        done = fetch("s3://bucket/nothing", tmp_path / "models", FETCH_ENDPOINT=endpoint, **credentials)
    assert done.error == "percore: cannot fetch: s3://bucket/nothing has no files"


@pytest.mark.parametrize("ranged", [True, False])
def test_an_archive_comes_over_https_by_several_ranges_or_without_them(tmp_path: Path, site: Site, ranged: bool) -> None:
    site.ranged = ranged
    secrets = {"FETCH_AUTHORIZATION": "Bearer of-a-secret", "FETCH_CA_FILE": site.ca}
    done = fetch(f"{site.url}/x/a.tar.gz?sig=a-secret%2F", tmp_path / "models", **secrets)
    assert done.status == 0, done.everything
    assert holds_all(tmp_path / "models")
    assert site.paths[-1] == "/x/a.tar.gz?sig=a-secret%2F"
    assert site.headers[-1]["authorization"] == "Bearer of-a-secret"
    assert sorted(site.ranges) == (sorted(["bytes=0-0", *parts()]) if ranged else [])
    assert done.messages[-1].endswith(f"/x/a.tar.gz?..., digest {digest_of(site.content)}")
    assert "secret" not in done.everything
    assert "secret" not in (tmp_path / "models/.percore-source.json").read_text()
    assert not (tmp_path / ".models.fetch").exists()


@pytest.mark.parametrize("ranged", [True, False])
def test_a_fetch_keeps_no_file_in_memory(tmp_path: Path, site: Site, ranged: bool) -> None:
    site.ranged = ranged
    site.content = bytes(300_000_000)
    done = run([sys.executable, "-c", PEAK, *command(f"{site.url}/model.keras", tmp_path / "models")], FETCH_CA_FILE=site.ca)
    assert (tmp_path / "models/model/1/model.keras").stat().st_size == len(site.content)
    assert int(done.output) < 128_000


def test_a_ca_that_is_not_known_is_one_sentence(tmp_path: Path, site: Site) -> None:
    done = fetch(f"{site.url}/a.zip", tmp_path / "models")
    assert done.status == 78
    assert done.error.endswith(
        "the certificate of the server is signed by a CA that is not known: name it by PERCORE_FETCH_CA_FILE"
    )


# --- faults ---


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("ranged", [True, False])
def test_a_fetch_goes_on_after_a_cut(tmp_path: Path, site: Site, share: float, ranged: bool) -> None:
    site.ranged = ranged
    site.cuts = [int(share * len(site.content))] * 3
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca, FETCH_CONNECTIONS=2)
    assert done.status == 0, done.everything
    assert site.cuts == []
    assert holds_all(tmp_path / "models")
    if ranged:  # only the parts that were being sent are fetched again
        assert site.sent < 1.3 * len(site.content)


def test_a_killed_process_leaves_its_fetched_parts_to_the_next_one(tmp_path: Path, site: Site) -> None:
    site.rate = 10_000_000
    given = environment(FETCH_CA_FILE=site.ca, FETCH_CONNECTIONS=1)
    first = subprocess.Popen(
        command(f"{site.url}/a.tar.gz", tmp_path / "models"), cwd=ROOT, env=given, stderr=subprocess.DEVNULL
    )
    while site.sent < 1.5 * SMALLEST_PART:
        time.sleep(0.05)
        assert first.poll() is None
    first.kill()
    first.wait()
    assert not (tmp_path / "models").exists()
    site.rate, before = 0, len(site.ranges)
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca)
    assert done.status == 0, done.everything
    assert sorted(site.ranges[before:]) == sorted(["bytes=0-0", *parts()[1:]])
    assert holds_all(tmp_path / "models")


@pytest.mark.parametrize(("status", "words"), [(403, "403 Forbidden"), (404, "it is not there|404"), (400, "400 Bad Request")])
def test_an_answer_that_will_not_change_ends_the_fetch_at_once(tmp_path: Path, site: Site, status: int, words: str) -> None:
    site.status = status
    done = fetch(f"{site.url}/a.tar.gz?sig=SECRET", tmp_path / "models", FETCH_CA_FILE=site.ca)
    assert done.status == 78
    assert re.search(words, done.error), done.error
    assert len(site.paths) == 1
    assert "SECRET" not in done.everything


def test_another_digest_is_refused_and_nothing_is_left(tmp_path: Path, site: Site) -> None:
    wrong = digest.PREFIX + "0" * 64
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", "--digest", wrong, FETCH_CA_FILE=site.ca)
    assert done.status == 78
    assert done.error.endswith(f"has the digest {digest_of(site.content)}: must be {wrong}")
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / ".models.fetch").iterdir()) == []


def test_the_right_digest_is_fetched_once(tmp_path: Path, site: Site) -> None:
    settings = {"FETCH_CA_FILE": site.ca, "MODEL_DIGEST": digest_of(site.content)}
    assert fetch(f"{site.url}/a.tar.gz", tmp_path / "models", **settings).status == 0
    before = len(site.paths)
    assert fetch(f"{site.url}/a.tar.gz", tmp_path / "models", **settings).status == 0
    assert len(site.paths) == before
    assert holds_all(tmp_path / "models")


def test_a_fetch_from_a_slow_server_ends_at_the_load_timeout_with_its_progress(tmp_path: Path, site: Site) -> None:
    site.rate = 1_000_000
    began = time.monotonic()
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca, LOAD_TIMEOUT=7)
    assert 7 <= time.monotonic() - began < 12
    assert done.status == 78
    assert re.search(r"was not fetched within PERCORE_LOAD_TIMEOUT=7 s: [\d.]+ of 40\.\d MB, \d+ %", done.error), done.error
    assert any(re.match(r"fetched [\d.]+ of 40\.\d MB, \d+ %, [\d.]+ MB/s", each) for each in done.messages)
    assert not (tmp_path / "models").exists()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, site: Site) -> None:
    site.rate = 10_000_000
    given = environment(FETCH_CA_FILE=site.ca, FETCH_CONNECTIONS=1)
    process = subprocess.Popen(
        command(f"{site.url}/a.tar.gz", tmp_path / "models"), cwd=ROOT, env=given, stderr=subprocess.PIPE, text=True
    )
    while len(site.ranges) < 2:
        time.sleep(0.05)
    site.tag = '"two"'
    _, said = process.communicate(timeout=60)
    assert "a.tar.gz changed while it was fetched" in said
    assert not (tmp_path / "models").exists()


def test_files_over_the_bound_are_refused_before_they_are_fetched(tmp_path: Path, site: Site) -> None:
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca, FETCH_MAX_BYTES=30_000_000)
    assert f"has {len(site.content)} bytes, which is more than PERCORE_FETCH_MAX_BYTES=30000000 allows" in done.error
    assert site.sent < 10


def test_an_archive_that_unpacks_to_more_than_the_bound_is_refused(tmp_path: Path, site: Site) -> None:
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca, FETCH_MAX_BYTES=60_000_000)
    assert "archive a.tar.gz: unpacks to more than PERCORE_FETCH_MAX_BYTES=60000000 allows" in done.error
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (tarfile.TarInfo("1/../../../outside"), r"entry '1/../../../outside': must be a path below the folder"),
        (tarfile.TarInfo("/outside"), "entry '/outside': must be a path below the folder"),
        (link("1/assets", tarfile.SYMTYPE), "entry '1/assets' of the archive is a link or special file"),
        (link("1/assets", tarfile.LNKTYPE), "entry '1/assets' of the archive is a link or special file"),
    ],
)
def test_a_hostile_archive_is_one_sentence_and_nothing_is_in_place(
    tmp_path: Path, site: Site, member: tarfile.TarInfo, words: str
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1/saved_model.pb"))
        tar.addfile(member)
    site.content = packed.getvalue()
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "deep/er/models", FETCH_CA_FILE=site.ca)
    assert done.status == 78
    assert words in done.error
    assert not (tmp_path / "deep/er/models").exists()
    assert not list(tmp_path.rglob("outside"))


def on_a_small_disk(folder: Path, options: str) -> tuple[str, ...]:
    """Return a prefix for a command. With it the command finds a small disk at ``folder``."""
    folder.mkdir()
    script = f'mount -t tmpfs -o {options} tmpfs "{folder}" && exec "$@"'
    return ("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=20m", r"has \d+ bytes, which is more than the disk has room for, \d+ bytes"),
        ("size=60m", r"archive a\.tar\.gz: unpacks to more than the disk has room for, \d+ bytes"),
        ("size=200m,nr_inodes=12", "cannot be stored: No space left on device"),
    ],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_in_place(tmp_path: Path, site: Site, options: str, words: str) -> None:
    if "nr_inodes" in options:
        site.content = archive_of(("1/saved_model.pb", b"graph"), *((f"1/assets/{number}", b"") for number in range(20)))
    prefix = on_a_small_disk(tmp_path / "disk", options)
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no user mount a disk of its own")
    done = run([*prefix, *command(f"{site.url}/a.tar.gz", tmp_path / "disk/models")], FETCH_CA_FILE=site.ca)
    assert done.status == 78
    assert re.search(words, done.error), done.everything


def test_a_folder_that_fetch_did_not_make_is_left_alone(tmp_path: Path, site: Site) -> None:
    (tmp_path / "models/mine").mkdir(parents=True)
    done = fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca)
    assert "was not made by `percore fetch`: name another folder, or remove it" in done.error
    assert (tmp_path / "models/mine").exists()


def test_a_fetch_replaces_the_files_of_an_earlier_one(tmp_path: Path, site: Site) -> None:
    assert fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca).status == 0
    site.content = archive_of(("2/saved_model.pb", b"other"))
    assert fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca).status == 0
    assert [str(each.relative_to(tmp_path / "models")) for each in (tmp_path / "models").rglob("*.pb")] == [
        "a/2/saved_model.pb"
    ]


def test_two_fetches_to_one_folder_do_not_mix(tmp_path: Path, site: Site) -> None:
    site.rate = 5_000_000
    given = environment(FETCH_CA_FILE=site.ca)
    first = subprocess.Popen(
        command(f"{site.url}/a.tar.gz", tmp_path / "models"), cwd=ROOT, env=given, stderr=subprocess.DEVNULL
    )
    while not site.ranges:
        time.sleep(0.05)
    assert "another process fetches to" in fetch(f"{site.url}/a.tar.gz", tmp_path / "models", FETCH_CA_FILE=site.ca).error
    site.rate = 0
    assert first.wait(60) == 0
    assert holds_all(tmp_path / "models")


def test_a_repository_with_another_digest_than_the_one_that_is_set_is_not_served(tmp_path: Path) -> None:
    assert fetch(f"file://{MODELS}/digits", tmp_path / "models").status == 0
    with Service(model_repository=tmp_path / "models", model_digest=digest.PREFIX + "0" * 64) as service:
        assert service.processes[0].wait(60) == 78
        assert any("has the digest sha256:" in line["message"] for line in service.log())
