"""Storage on the local filesystem: URIs, files, tables, digests."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core import local_cache, storage
from meow_ray.errors import MeowError

TABLE = pa.table({"fact_id": ["a", "b"], "memo": [0.5, None]})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- URIs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("runs", True),
        ("/abs/runs", True),
        ("~/runs", True),
        ("file:///abs/runs", True),
        ("s3://bucket/runs", False),
        ("gs://bucket/runs", False),
    ],
)
def test_a_uri_is_local_or_not(uri: str, local: bool):
    assert storage.is_local(uri) is local


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.absolute("runs/x/") == f"{tmp_path}/runs/x"
    assert storage.absolute("~/runs") == "/home/me/runs"
    assert storage.absolute("file:///abs/runs") == "/abs/runs"
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/runs", "/runs/a/b.json"),
        ("/runs/", "/runs/a/b.json"),
        ("s3://bucket/runs", "s3://bucket/runs/a/b.json"),
        (
            "s3://bucket/runs/?scheme=http&region=x",
            "s3://bucket/runs/a/b.json?scheme=http&region=x",
        ),
        ("/what?/runs", "/what?/runs/a/b.json"),
    ],
)
def test_path_components_are_appended_before_the_query(uri: str, expected: str):
    assert storage.join(uri, "a", "b.json") == expected


def test_a_uri_is_shown_without_its_query_which_may_carry_credentials():
    assert storage.display("s3://bucket/runs?access_key=A&secret_key=S") == "s3://bucket/runs"


@pytest.mark.parametrize("uri", ["foo://bucket/x", "http://host/x"])
def test_an_unknown_scheme_is_named(uri: str):
    with pytest.raises(MeowError, match=f"^{uri}: .*filesystem"):
        storage.read_bytes(uri)


# --- files --------------------------------------------------------------------------------------


def test_json_is_read_as_it_was_written_and_is_readable(tmp_path: Path):
    uri = str(tmp_path / "new" / "x.json")
    value = {"name": "Émile", "memo": 0.25, "none": None}
    assert storage.write_json(uri, value) is True
    assert storage.read_json(uri) == value
    assert "Émile" in Path(uri).read_text(encoding="utf-8")
    storage.write_json(uri, [])
    assert storage.read_json(uri) == []
    assert names(tmp_path) == ["new/x.json"]


def test_an_exclusive_write_never_replaces(tmp_path: Path):
    uri = str(tmp_path / "x.json")
    assert storage.write_json(uri, 1, exclusive=True) is True
    assert storage.write_json(uri, 2, exclusive=True) is False
    assert storage.read_json(uri) == 1
    assert names(tmp_path) == ["x.json"]


def test_an_exclusive_write_loses_to_a_file_that_appears_in_the_meantime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.json"
    sync = os.fsync

    def other_driver(descriptor: int) -> None:
        sync(descriptor)
        path.write_text("1")

    monkeypatch.setattr(os, "fsync", other_driver)
    assert storage.write_json(str(path), 2, exclusive=True) is False
    assert path.read_text() == "1"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    uri = str(tmp_path / "x.json")
    storage.write_json(uri, 1)

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        MeowError,
        match=rf"^{uri}: the disk .*Free some space and start again; finished stages are reused\.$",
    ):
        storage.write_json(uri, 2)
    assert storage.read_json(uri) == 1
    assert names(tmp_path) == ["x.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_while_a_table_is_written_is_named(tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.symlink_to("/dev/full")
    with pytest.raises(MeowError, match=rf"^{path}: the disk is full\. "):
        storage.write_table(pa.table({"x": list(range(10_000))}), str(path))


@pytest.mark.parametrize(
    "read",
    [
        storage.read_json,
        storage.read_bytes,
        storage.file_digest,
        storage.content_digest,
        storage.parquet_files,
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[str], Any]):
    with pytest.raises(MeowError, match=rf"^{tmp_path}/x: (there is )?no "):
        read(str(tmp_path / "x"))
    with pytest.raises(MeowError, match=rf"^{tmp_path}/x: there is no such file"):
        storage.read_table([str(tmp_path / "x")])


def test_broken_json_is_named(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(MeowError, match=r"x\.json: not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"))


def test_a_location_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MeowError, match=rf"^{tmp_path}/file/x\.json: "):
        storage.write_json(str(tmp_path / "file" / "x.json"), 1)
    assert names(tmp_path) == ["file"]


def test_folders_are_listed_created_copied_and_removed(tmp_path: Path):
    root = str(tmp_path / "root")
    for name in ("b.txt", "a/c.txt", "a/b.txt"):
        storage.write_bytes(storage.join(root, name), name.encode())
    storage.make_folder(storage.join(root, "empty", "inner"))
    assert storage.list_files(root) == ["a/b.txt", "a/c.txt", "b.txt"]
    assert storage.list_names(root) == ["a", "b.txt", "empty"]
    storage.copy_folder(root, str(tmp_path / "copy"))
    assert storage.list_files(str(tmp_path / "copy")) == ["a/b.txt", "a/c.txt", "b.txt"]
    storage.remove(storage.join(root, "b.txt"))
    storage.remove(storage.join(root, "a"))
    storage.remove(storage.join(root, "missing"))
    assert storage.list_files(root) == []
    assert storage.exists(root)
    assert not storage.exists(storage.join(root, "a"))
    assert (
        storage.list_files(str(tmp_path / "nowhere"))
        == storage.list_names(str(tmp_path / "nowhere"))
        == []
    )


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path):
    target = tmp_path / "deep" / "model"
    lock = "deep/.model.lock"

    def build(text: str, crash: bool) -> None:
        def make(part: Path) -> None:
            (part / "x").write_text(text)
            assert not target.exists()
            if crash:
                raise KeyboardInterrupt

        assert local_cache.made_once(target, make) == target

    with pytest.raises(KeyboardInterrupt):
        build("crashed", crash=True)
    assert set(names(tmp_path)) <= {lock}
    build("first", crash=False)
    build("late", crash=False)
    assert (target / "x").read_text() == "first"
    assert set(names(tmp_path)) <= {"deep/model/x", lock}


def test_a_folder_that_several_threads_ask_for_is_made_once(tmp_path: Path):
    made = []

    def make(part: Path) -> None:
        made.append(part)
        time.sleep(0.2)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(local_cache.made_once, tmp_path / "model", make) for _ in range(4)]
        assert {call.result() for call in calls} == {tmp_path / "model"}
    assert len(made) == 1


# --- tables -------------------------------------------------------------------------------------


def test_equal_tables_give_equal_bytes(tmp_path: Path):
    chunked = pa.concat_tables([TABLE.slice(1), TABLE.slice(0, 1), TABLE]).take([1, 3])
    assert chunked.equals(TABLE)
    storage.write_table(TABLE, str(tmp_path / "new" / "x.parquet"))
    storage.write_table(chunked, str(tmp_path / "y.parquet"))
    assert (tmp_path / "new" / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_tables_are_read_in_the_order_of_their_files(tmp_path: Path):
    for name, part in (("b", TABLE.slice(0, 1)), ("a", TABLE.slice(1))):
        storage.write_table(part, str(tmp_path / f"{name}.parquet"))
    assert storage.read_table([str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")]).equals(
        TABLE
    )
    (tmp_path / "notes.txt").write_text("no table")
    assert storage.parquet_files(str(tmp_path)) == [
        str(tmp_path / "a.parquet"),
        str(tmp_path / "b.parquet"),
    ]
    assert storage.parquet_files(str(tmp_path / "b.parquet")) == [str(tmp_path / "b.parquet")]


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(MeowError, match=rf"^{tmp_path}/x\.parquet: "):
        storage.read_table([str(tmp_path / "x.parquet")])


def test_files_with_different_columns_are_an_error(tmp_path: Path):
    storage.write_table(TABLE, str(tmp_path / "a.parquet"))
    storage.write_table(TABLE.drop_columns(["memo"]), str(tmp_path / "b.parquet"))
    with pytest.raises(
        MeowError, match=rf"^{tmp_path}/b\.parquet: the columns differ from {tmp_path}/a\.parquet"
    ):
        storage.read_table([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])


# --- digests ------------------------------------------------------------------------------------


def set_time(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_a_digest_is_the_sha256_of_the_content(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"meow" * (storage.CHUNK // 3))
    assert storage.file_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert storage.file_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_change_that_keeps_the_size_is_noticed_by_the_modification_time(tmp_path: Path):
    path = tmp_path / "x"
    for i, content in enumerate((b"meow", b"moow", b"meow")):
        path.write_bytes(content)
        set_time(path, 10**18 + i)
        assert storage.file_digest(str(path)) == hashlib.sha256(content).hexdigest()


def test_a_change_that_keeps_size_and_time_is_noticed_by_verify(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"meow")
    set_time(path, 10**18)
    old = storage.file_digest(str(path))
    path.write_bytes(b"moow")
    set_time(path, 10**18)
    assert storage.file_digest(str(path)) == old
    new = hashlib.sha256(b"moow").hexdigest()
    assert storage.file_digest(str(path), verify=True) == new
    assert storage.file_digest(str(path)) == new


def test_the_digest_of_a_folder_depends_on_names_and_contents_but_not_on_its_path(tmp_path: Path):
    def digest(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            storage.write_bytes(str(tmp_path / name / file), text.encode())
        return storage.content_digest(str(tmp_path / name))

    first = digest("one", {"a": "x", "b/c": "y"})
    assert digest("two", {"b/c": "y", "a": "x"}) == first
    others = [
        digest("3", {"a": "x"}),
        digest("4", {"a": "x", "c": "y"}),
        digest("5", {"a": "x", "b/c": "z"}),
    ]
    assert len({first, *others}) == 4


def test_canonical_json_has_sorted_keys_and_no_blanks():
    expected = hashlib.sha256('{"a":[1.5,"é",null],"b":true}'.encode()).hexdigest()
    assert storage.json_digest({"b": True, "a": [1.5, "é", None]}) == expected
