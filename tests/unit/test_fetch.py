"""The parts of `percore fetch` that need no server: URIs, archives, layouts, digests, and the text of errors."""

from __future__ import annotations

import contextlib
import io
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from obstore.exceptions import GenericError, PermissionDeniedError
from percore import model_source, settings
from percore.errors import LoadError
from percore.fetch import archive, command, digest, layout, object_store
from percore.fetch.archive import WriteLimits, unpack
from percore.fetch.uri import parse
from percore.model_source import ModelSource

MODEL = "saved_model.pb"
LIMITS = WriteLimits(10_000_000, 100, "the test allows")


# --- URIs ---


@pytest.mark.parametrize(
    ("uri", "name", "version"),
    [
        ("s3://bucket/models/digits", "digits", 1),
        ("s3://bucket/models/digits/7/", "digits", 7),
        ("gs://bucket", "bucket", 1),
        ("az://container/digits.tar.gz", "digits", 1),
        ("https://host:8443/a%20b/digits%2D2.ZIP?sig=x", "digits-2", 1),
        ("https://host/my%20digits.zip", "model", 1),
        ("file:///models/7", "models", 7),
        ("file:///7", "model", 7),
    ],
)
def test_a_model_without_a_name_is_named_by_the_end_of_its_uri(uri: str, name: str, version: int) -> None:
    assert parse(uri).default_name() == (name, version)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/a.zip", "begins with 'ftp': must be one of s3://, gs://, az://, https://, file://"),
        ("http://host/a.zip", "begins with 'http': must be one of"),
        ("models/digits", "begins with 'models': must be one of"),
        ("https://user:secret@host/a.zip", "has a user or a password: set PERCORE_FETCH_AUTHORIZATION instead"),
        ("https://host/models", "must end with one of .tar.gz, .tgz, .tar, .zip, .keras"),
        ("https://host/models?secret", "https://host/models?...: must end with"),
        ("s3:///path", "a bucket or host is missing"),
        ("s3://bucket/a?secret=1", "has a query: only https:// may have one"),
        ("s3://bucket/a/../b", "must have no segment that is . or .."),
        ("file://models/a", "must be file:///PATH"),
        ("https://[bad/a.zip", "its host is not well-formed"),
    ],
)
def test_a_uri_that_breaks_a_rule_is_refused_with_a_sentence_that_tells_no_secret(uri: str, words: str) -> None:
    with pytest.raises(LoadError) as error:
        parse(uri)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_query_is_kept_for_the_server_and_not_shown() -> None:
    source = parse("https://host/a.zip?sig=secret")
    assert (source.query, source.loggable) == ("sig=secret", "https://host/a.zip?...")


# --- archives ---


def tar(path: Path, *members: tuple[str, bytes | None], kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else kind
            member.linkname = link
            member.size = len(content or b"") if member.isreg() else 0
            packed.addfile(member, io.BytesIO(content or b""))
    return path


def zipped(path: Path, *members: tuple[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_is_unpacked_as_it_is(tmp_path: Path, pack: Any) -> None:
    suffix = "zip" if pack is zipped else "tar.gz"
    packed = pack(tmp_path / f"a.{suffix}", ("1/saved_model.pb", b"graph"), ("1/variables/data", b"\0" * 3_000_000))
    unpack(packed, tmp_path / "out", LIMITS)
    assert contents(tmp_path / "out") == {"1/saved_model.pb": b"graph", "1/variables/data": b"\0" * 3_000_000}


ESCAPES = ("../evil", "/evil", "a/../../evil", "a\\..\\evil", "a/\nb")


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_entry_that_would_leave_the_folder_is_refused(tmp_path: Path, pack: Any, name: str) -> None:
    suffix = "zip" if pack is zipped else "tar.gz"
    packed = pack(tmp_path / f"a.{suffix}", ("fine", b"x"), (name, b"x"))
    (tmp_path / "below").mkdir()
    with pytest.raises(LoadError, match=r"must be a path below the folder, without `\.\.`"):
        unpack(packed, tmp_path / "below/out", LIMITS)
    assert contents(tmp_path / "below") == {"out/fine": b"x"}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    packed = tar(tmp_path / "a.tar.gz", ("name", b""), kind=kind, link="/etc/passwd")
    with pytest.raises(LoadError, match="'name' of the archive is a link or special file: only files and folders are unpacked"):
        unpack(packed, tmp_path / "out", LIMITS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_in_a_zip_archive_is_refused(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "a.zip", ("name", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)
    with pytest.raises(LoadError, match="only files and folders are unpacked"):
        unpack(packed, tmp_path / "out", LIMITS)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, pack: Any) -> None:
    suffix = "zip" if pack is zipped else "tar.gz"
    packed = pack(tmp_path / f"bomb.{suffix}", ("zeros", bytes(20_000_000)))
    assert packed.stat().st_size < 100_000
    with pytest.raises(LoadError, match="unpacks to more than the test allows"):
        unpack(packed, tmp_path / "out", LIMITS)
    assert contents(tmp_path / "out") == {}


def test_a_zip_archive_with_an_entry_longer_than_its_size_is_refused(tmp_path: Path) -> None:
    packed = zipped(tmp_path / "a.zip", ("zeros", bytes(1_000_000)))
    lying = packed.read_bytes().replace((1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    packed.write_bytes(lying)
    with pytest.raises(LoadError, match="cannot be read"):
        unpack(packed, tmp_path / "out", LIMITS)
    assert sum(map(len, contents(tmp_path / "out").values())) <= 1001


@pytest.mark.parametrize("pack", [tar, zipped])
def test_too_many_entries_are_refused(tmp_path: Path, pack: Any) -> None:
    suffix = "zip" if pack is zipped else "tar.gz"
    packed = pack(tmp_path / f"a.{suffix}", *((str(number), b"") for number in range(101)))
    with pytest.raises(LoadError, match="has more than PERCORE_FETCH_MAX_FILES=100 entries"):
        unpack(packed, tmp_path / "out", LIMITS)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(10_000))
    with pytest.raises(LoadError, match="it has a header of 4294967296 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out", LIMITS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_archive_with_damaged_data_is_refused(tmp_path: Path, compression: int) -> None:
    content = bytes(range(256)) * 400
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as packed:
        packed.writestr("a/b", content)
    damaged = bytearray((tmp_path / "a.zip").read_bytes())
    at = 30 + len("a/b") + 12  # inside the data of the entry
    damaged[at : at + 40] = b"\xff" * 40
    (tmp_path / "a.zip").write_bytes(damaged)
    with pytest.raises(LoadError, match=r"archive a\.zip: cannot be read: "):
        unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS)


def test_two_entries_for_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has two entries for a/b"):
        unpack(tar(tmp_path / "a.tar.gz", ("a/b", b"1"), ("a/./b", b"2")), tmp_path / "out", LIMITS)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.tar"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive" * 100)
    with pytest.raises(LoadError, match=rf"archive {name}: cannot be read"):
        unpack(tmp_path / name, tmp_path / "out", LIMITS)


def test_half_an_archive_is_refused(tmp_path: Path) -> None:
    packed = tar(tmp_path / "a.tar.gz", ("a", bytes(range(256)) * 1000))
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(LoadError, match=r"archive a\.tar\.gz: cannot be read"):
        unpack(packed, tmp_path / "out", LIMITS)


# --- layouts ---


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([MODEL], [f"name/4/{MODEL}"]),
        (["anything.keras"], ["name/4/anything.keras"]),
        ([f"7/{MODEL}", f"8/{MODEL}"], [f"name/7/{MODEL}", f"name/8/{MODEL}"]),
        ([f"a/1/{MODEL}", "b/2/model.keras"], [f"a/1/{MODEL}", "b/2/model.keras"]),
        ([f"wrapper/{MODEL}"], [f"name/4/{MODEL}"]),
        ([f"wrapper/a/1/{MODEL}", "README.md"], [f"a/1/{MODEL}"]),
    ],
)
def test_models_are_found_in_fetched_files(tmp_path: Path, files: list[str], wanted: list[str]) -> None:
    for name in files:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    layout.arrange(tmp_path / "tree", tmp_path / "models", "name", 4)
    assert sorted(contents(tmp_path / "models")) == sorted(wanted)


def test_files_without_a_model_are_refused_with_the_layout(tmp_path: Path) -> None:
    (tmp_path / "tree/notes").mkdir(parents=True)
    with pytest.raises(LoadError, match=r"have no models; expected NAME/VERSION/saved_model\.pb"):
        layout.arrange(tmp_path / "tree", tmp_path / "models", "name", 1)


# --- digests and notes ---


def test_the_digest_of_a_folder_is_that_of_sha256sum(tmp_path: Path) -> None:
    names = ("b", "a/1", "a-1", "ä", "A")
    hashes = {}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        hashes[name] = subprocess.run(
            ["sha256sum", tmp_path / name], check=True, capture_output=True, text=True
        ).stdout.split()[0]
    line = r"find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"
    assert line in (digest.__doc__ or "")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert digest.of_folder(hashes) == f"sha256:{done.stdout.split()[0]}"


def test_the_note_beside_the_models_is_read_back(tmp_path: Path) -> None:
    assert model_source.read(tmp_path) is None
    model_source.write(tmp_path, ModelSource("s3://a/b", "sha256:1"))
    assert model_source.read(tmp_path) == ModelSource("s3://a/b", "sha256:1")
    (tmp_path / model_source.FILE).write_text("{}")
    with pytest.raises(LoadError, match="cannot be read"):
        model_source.read(tmp_path)


# --- errors ---


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionDeniedError(
                "Error performing GET https://h/a?X-Amz-Signature=SECRET - status code: 403 Forbidden: SECRET"
            ),
            "the server answers 403 Forbidden",
        ),
        (
            GenericError("status code: 400 Bad Request: <Code>NoSuchBucket</Code><Key>SECRET</Key>"),
            "400 Bad Request (NoSuchBucket)",
        ),
        (GenericError("odd https://u:SECRET@h/a?sig=SECRET, more\n\nDebug SECRET"), "odd https://h/a?... more"),
        (GenericError("Error performing PUT http://169.254.169.254/latest - SECRET"), "no credentials were found"),
        (
            GenericError("Generic MicrosoftAzure error: Invalid Access Key: SECRET"),
            "the key of the account is not valid Base64",
        ),
        (FileNotFoundError("Object at location SECRET not found"), "it is not there"),
    ],
)
def test_an_error_becomes_a_sentence_without_secrets(error: Exception, words: str) -> None:
    assert words in object_store.reason(error)
    assert "SECRET" not in object_store.reason(error)


CERTIFICATE = trustme.CA().cert_pem.bytes()
OTHER_BYTES = b"-----BEGIN CERTIFICATE-----\naGVsbG8gd29ybGQ=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x30\x82\xff",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        CERTIFICATE[: len(CERTIFICATE) // 2],
        CERTIFICATE + OTHER_BYTES,
        # OpenSSL reads these, but the library that fetches does not.
        CERTIFICATE.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"),
        CERTIFICATE.replace(b" CERTIFICATE", b" X509 CERTIFICATE"),
    ],
)
def test_certificates_that_cannot_be_used_are_no_error_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    given = settings.load({"PERCORE_FETCH_CA_FILE": str(file), "PERCORE_FETCH_ANONYMOUS": "yes"}).fetch
    for uri in ("https://127.0.0.1:1/a.zip", "s3://bucket/models", "gs://bucket/models", "az://bucket/models"):
        with pytest.raises(LoadError) as raised:
            object_store.open_store(parse(uri), given)
        assert str(raised.value) == f"PERCORE_FETCH_CA_FILE={file}: must hold valid certificates in PEM"


def test_several_certificates_in_one_file_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(CERTIFICATE + trustme.CA().cert_pem.bytes())
    given = settings.load({"PERCORE_FETCH_CA_FILE": str(file)}).fetch
    assert object_store.open_store(parse("https://127.0.0.1:1/a.zip"), given)


def test_a_link_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    archive.remove(tmp_path / "link")
    archive.remove(tmp_path / "nothing")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").is_dir()


def test_a_pod_shows_the_sentence_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TERMINATION_LOG", tmp_path / "log")
    for attempt in range(2):  # on a machine there is no such file, and none is made
        with pytest.raises(LoadError, match=r"file:///nowhere/at-all has no files"):
            command.fetch(settings.load({}), "file:///nowhere/at-all", tmp_path / "models", "")
        assert (tmp_path / "log").exists() == (attempt == 1)
        (tmp_path / "log").touch()
    assert (tmp_path / "log").read_text() == "file:///nowhere/at-all has no files\n"


def test_what_is_unpacked_after_the_timeout_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacking, late, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(*given: Any) -> None:
        unpacking.set()
        late.wait(30)
        unpack(*given)

    @contextlib.contextmanager
    def until_the_end(staging: Path) -> Iterator[None]:
        with locked(staging):
            try:
                yield
            finally:
                ended.set()

    locked = command._locked
    monkeypatch.setattr(archive, "unpack", slowly)
    monkeypatch.setattr(command, "_locked", until_the_end)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(f"1/{MODEL}"))
    with pytest.raises(LoadError, match=r"was not fetched within PERCORE_LOAD_TIMEOUT=1 s"):
        command.fetch(settings.load({"PERCORE_LOAD_TIMEOUT": "1"}), f"file://{tmp_path}/a.tar.gz", tmp_path / "models", "")
    assert unpacking.is_set()
    late.set()
    assert ended.wait(30)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (PermissionDeniedError("without a status"), True),
        (FileNotFoundError("without a status"), True),
        (GenericError("status code: 400 Bad Request"), True),
        (GenericError("invalid peer certificate: UnknownIssuer"), True),
        (GenericError("status code: 429 Too Many Requests"), False),
        (GenericError("status code: 503 Service Unavailable"), False),
        (GenericError("error decoding response body"), False),
        (ConnectionError("cut"), False),
    ],
)
def test_only_an_error_that_will_not_go_away_ends_a_fetch(error: Exception, final: bool) -> None:
    assert object_store.is_final(error) == final
