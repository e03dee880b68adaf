"""Blocklists: what is hashed, every form and every fault of a file, and the command that makes one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import uid_of, uids_to_array
from data_pipeline.blocked import Blocked
from data_pipeline.blocklist import BLOCKLIST_SCHEMA, BlockKind, hash_of, host_of, main, write_blocklist
from data_pipeline.blocklist_files import check_blocklists, read_blocklist
from data_pipeline.deduplicate_keys import KeyListWriter, keys_of_hex, open_keys

ROOT = Path(__file__).resolve().parents[2]
SECRET = "f00d" * 16  # a hash that no message may repeat
UID = uid_of("http://h/a", "a")


def entries(path):
    return [
        (kind.value, f"{int(high):016x}{int(low):016x}")
        for kind, keys in read_blocklist(str(path))
        for high, low in keys
    ]


def parquet(path, kinds, hashes):
    pq.write_table(pa.table({"kind": kinds, "hash": hashes}), path)
    return path


# What is hashed


def test_one_address_in_many_spellings_has_one_hash():
    expected = hash_of(BlockKind.url, "https://example.org/a.jpg?x=1")
    for spelling in ("HTTPS://EXAMPLE.org:443/b/../a.jpg?x=1#top", "  https://example.org/a.jpg?x=1\n"):
        assert hash_of(BlockKind.url, spelling) == expected
    assert hash_of(BlockKind.url, "https://example.org/a.jpg") != expected
    assert hash_of(BlockKind.domain, "bücher.example") == hash_of(
        BlockKind.domain, "*.XN--bcher-kva.example."
    )


def test_a_hash_is_the_sha256_of_the_text():
    import hashlib

    assert hash_of(BlockKind.domain, "example.org") == hashlib.sha256(b"example.org").hexdigest()
    assert hash_of(BlockKind.url, "http://h/a") == hashlib.sha256(b"http://h/a").hexdigest()
    assert hash_of(BlockKind.uid, UID.upper()) == UID


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (BlockKind.uid, "x" * 32), (BlockKind.uid, "0" * 31), (BlockKind.uid, ""),
        (BlockKind.url, "example.org/a.jpg"), (BlockKind.url, "ftp://h/a"), (BlockKind.url, ""),
        (BlockKind.domain, "http://example.org"), (BlockKind.domain, "a b"), (BlockKind.domain, ""),
        (BlockKind.domain, "example.org/path"), (BlockKind.domain, "h:80"),
    ],
)  # fmt: skip
def test_what_is_not_an_entry(kind, value):
    with pytest.raises(ValueError, match=r"^not an? "):
        hash_of(kind, value)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://h/a", "h"), ("https://www.h.org:8443/a/b?c://d", "www.h.org"), ("http://h.org./", "h.org"),
        ("http://[::1]:80/a", "[::1]"), ("http://[::1]/", "[::1]"), ("http://10.0.0.1/x", "10.0.0.1"),
    ],
)  # fmt: skip
def test_hosts(url, host):
    assert host_of(url) == host


# Reading


def test_all_forms_give_the_same_entries(tmp_path):
    url, domain = hash_of(BlockKind.url, "http://h/a"), hash_of(BlockKind.domain, "h.org")
    kinds, hashes = ["uid", "url", "domain"], [UID, url, domain]
    expected = [("uid", UID), ("url", url[:32]), ("domain", domain[:32])]
    assert entries(parquet(tmp_path / "a.parquet", kinds, hashes)) == expected
    coded = pa.array(kinds).dictionary_encode()
    assert (
        entries(parquet(tmp_path / "coded.parquet", coded, pa.array(hashes, pa.large_string()))) == expected
    )
    pl.DataFrame({"kind": kinds, "hash": hashes}).write_parquet(tmp_path / "polars.parquet")
    assert entries(tmp_path / "polars.parquet") == expected
    lines = [f"{kind}:{text}" for kind, text in zip(kinds, hashes, strict=True)]
    (tmp_path / "a.txt").write_text("# comment\r\n\r\n" + "\r\n".join(lines))
    assert entries(tmp_path / "a.txt") == expected
    np.save(tmp_path / "a.npy", uids_to_array([UID]))
    assert entries(tmp_path / "a.npy") == expected[:1]


def test_an_empty_list_blocks_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("")
    np.save(tmp_path / "a.npy", uids_to_array([]))
    parquet(tmp_path / "a.parquet", pa.array([], pa.string()), pa.array([], pa.string()))
    for name in ("a.txt", "a.npy", "a.parquet"):
        check_blocklists([str(tmp_path / name)])
        assert entries(tmp_path / name) == []


@pytest.mark.parametrize(
    "line",
    [SECRET, f"host:{SECRET}", f"url:{SECRET[:-1]}", f"uid:{SECRET}", f"url:{SECRET[:-1]}g", f"url:z{SECRET[1:]}",
     f"domain: {SECRET}", f"url:{SECRET[:-1]}é", "http://secret.example/f00d"],
)  # fmt: skip
def test_a_bad_entry_is_refused_by_its_place_and_not_repeated(tmp_path, line):
    good = f"uid:{UID}"
    (tmp_path / "a.txt").write_text("\n".join([good, "# x", line, good]), encoding="utf-8")
    kind, _, text = line.rpartition(":")
    parquet(tmp_path / "a.parquet", ["uid", "uid", kind], [UID, UID, text])
    for path, place in ((tmp_path / "a.txt", "line 3"), (tmp_path / "a.parquet", "row 3")):
        with pytest.raises(
            DataError, match=rf"{place}, is not an entry of a blocklist: a kind \(uid, url,"
        ) as info:
            entries(path)
        assert "f00d" not in str(info.value)
        assert "secret" not in str(info.value)
        with pytest.raises(
            ConfigError, match=rf"deduplicate.blocklist names .*, which cannot be used: .*{place}"
        ):
            check_blocklists([str(path)])


def test_damaged_and_strange_files_are_refused_before_work(tmp_path):
    whole = parquet(tmp_path / "whole.parquet", ["uid"] * 1000, [UID] * 1000).read_bytes()
    np.save(tmp_path / "whole.npy", uids_to_array([UID]))
    np.save(tmp_path / "numbers.npy", np.arange(5))
    files = {
        "cut.parquet": (whole[:-20], "cannot be read as a blocklist"),
        "empty.parquet": (b"", "cannot be read as a blocklist"),
        "cut.npy": ((tmp_path / "whole.npy").read_bytes()[:-3], "cannot be read as a blocklist"),
        "html.npy": (b"<html>", "cannot be read as a blocklist"),
        "numbers.npy": (None, "1-dimensional int64, not uids"),
        "binary.txt": (b"\xff\xfe\x00", r"cannot be read as a blocklist \(not UTF-8 text\)"),
        "list.csv": (b"uid:0", r"a blocklist ends in \.parquet, \.txt, \.npy"),
    }
    for name, (content, message) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"deduplicate\.blocklist names .*{name}.*{message}.*Make one"):
            check_blocklists([str(tmp_path / name)])
    pq.write_table(pa.table({"url": ["http://secret"]}), tmp_path / "plain.parquet")
    with pytest.raises(ConfigError, match=r"has no text column 'kind' \(it has url\)"):
        check_blocklists([str(tmp_path / "plain.parquet")])
    with pytest.raises(ConfigError, match=r"names nowhere\.txt, which is not a file; check the path"):
        check_blocklists(["nowhere.txt"])
    with pytest.raises(ConfigError, match=r"whole\.npy 2 times; name it once"):
        check_blocklists([str(tmp_path / "whole.npy")] * 2)


def test_nulls_in_a_parquet_list_are_bad_entries(tmp_path):
    for kinds, hashes in (([None], [UID]), (["uid"], [None])):
        path = parquet(tmp_path / "a.parquet", pa.array(kinds, pa.string()), pa.array(hashes, pa.string()))
        with pytest.raises(DataError, match="row 1, is not an entry"):
            entries(path)


# Applying


def key_list(path, hashes):
    writer = KeyListWriter(path)
    for text in hashes:
        writer.add(keys_of_hex(text[:32].encode()))
    writer.close()
    return open_keys(path)


def test_rows_are_blocked_by_the_first_kind_that_applies(tmp_path):
    urls = [
        "http://a.b.org/1",
        "http://b.org/2",
        "http://c.org/3",
        "http://c.org/4",
        "http://10.1.2.3/5",
        "http://3/6",
    ]
    uids = [uid_of(url, "") for url in urls]
    blocked = Blocked(
        key_list(tmp_path / "uid.npy", [uids[1]]),
        key_list(tmp_path / "url.npy", [hash_of(BlockKind.url, url) for url in (urls[1], urls[2])]),
        key_list(
            tmp_path / "domain.npy", [hash_of(BlockKind.domain, name) for name in ("b.org", "2.3", "a.c.org")]
        ),
    )
    keys = keys_of_hex("".join(uids).encode())
    column = pa.chunked_array([urls[:2], [], urls[2:]])
    assert blocked.kind_of_each(keys, column).tolist() == [2, 0, 1, -1, -1, -1]


def test_a_key_list_is_sorted_and_has_each_key_once(tmp_path):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 1 << 63, (20_000, 2)).astype(np.uint64) * np.uint64(2)
    keys[:50, 0] = 7  # one high half, several low ones
    writer = KeyListWriter(tmp_path / "keys.npy")
    for part in np.array_split(np.concatenate([keys, keys[:300]]), 9):
        writer.add(part)
    assert writer.close() == 20_000
    found = open_keys(tmp_path / "keys.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["keys.npy"]
    assert sorted(map(tuple, keys.tolist())) == list(map(tuple, found.T.tolist()))


# The command


def test_the_command_makes_a_list_that_reads_back(tmp_path):
    (tmp_path / "urls.txt").write_text("# mine\nhttp://h/a\n\nHTTP://h:80/b#c\n")
    (tmp_path / "domains.txt").write_text("Example.org\n")
    (tmp_path / "uids.txt").write_text(UID.upper())
    words = [
        part for kind in ("urls", "domains", "uids") for part in (f"--{kind}", str(tmp_path / f"{kind}.txt"))
    ]
    command = [
        sys.executable,
        "-m",
        "data_pipeline.blocklist",
        "--output",
        str(tmp_path / "b.parquet"),
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("b.parquet: 1 uid hashes, 2 url hashes, 1 domain hashes\n")
    assert pq.read_schema(tmp_path / "b.parquet").equals(BLOCKLIST_SCHEMA)
    assert entries(tmp_path / "b.parquet") == [
        ("uid", UID),
        ("url", hash_of(BlockKind.url, "http://h/a")[:32]),
        ("url", hash_of(BlockKind.url, "http://h/b")[:32]),
        ("domain", hash_of(BlockKind.domain, "example.org")[:32]),
    ]


def test_the_command_says_what_is_wrong_and_repeats_no_entry(tmp_path, capsys):
    plain, output = tmp_path / "plain.txt", tmp_path / "b.parquet"
    plain.write_text("http://h/a\n\nsecret\n")
    assert main(["--output", str(output), "--urls", str(plain)]) == 2
    told = capsys.readouterr().err
    assert f"error: {plain}, line 3, is not an http(s) URL; correct or remove it" in told
    assert "secret" not in told
    assert not output.exists()
    assert main(["--output", str(output), "--urls", str(tmp_path / "nowhere.txt")]) == 2
    assert "cannot be read as a text of one url a line" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--output is b\.txt; give a name that ends in \.parquet"):
        write_blocklist("b.txt", {BlockKind.url: str(plain)})
    with pytest.raises(SystemExit):
        main(["--output", str(output)])
    assert (
        "give at least one of --urls, --domains, --uids, --md5, --sha256 and --phash"
        in capsys.readouterr().err
    )
