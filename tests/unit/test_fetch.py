"""The engine against a server that misbehaves on purpose: every fault ends in its status, in bounded time."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from dataclasses import replace

import pytest
from hostile_server import GOOD_JPEG, HostileServer, no_dns, response

from crawl2clip.errors import ConfigError
from crawl2clip.schema import DownloadStatus
from data_pipeline.fetch import Fetched, Fetcher
from data_pipeline.fetch_config import FetchConfig
from data_pipeline.policy import PolicyConfig

POLICY = PolicyConfig(
    robots=True,
    opt_out_directives=["noai", "noimageai", "noindex", "noimageindex"],
    tdmrep=False,
    aipref_usages=[],
)
CONFIG = FetchConfig(
    user_agent="crawl2clip/0.1 (+https://example.org/bot)",
    concurrency=64,
    per_host_connections=64,
    per_host_requests_per_s=10_000.0,
    max_host_failures=1_000,
    nameservers=[],
    connect_timeout_s=2.0,
    first_byte_timeout_s=2.0,
    min_bytes_per_s=0.0,
    task_timeout_s=30.0,
    read_timeout_s=2.0,  # what a good answer has on a busy machine, and what each stalling one costs
    total_timeout_s=4.0,
    retries=0,
    backoff_s=0.02,
    max_retry_after_s=1.0,
    max_redirects=5,
    max_bytes=1_000_000,
    allow_loopback=True,
    policy=POLICY,
)


async def keep(body: bytes) -> bytes:
    return body


def fetch_all(config: FetchConfig, *urls: str) -> list[Fetched[bytes]]:
    async def main():
        fetcher = Fetcher(config)
        try:
            return await asyncio.gather(*(fetcher.fetch(url, keep) for url in urls))
        finally:
            await fetcher.close()

    return asyncio.run(main())


def fetch(config: FetchConfig, url: str) -> Fetched[bytes]:
    return fetch_all(config, url)[0]


@pytest.fixture(scope="module")
def server():
    with HostileServer() as server:
        yield server


FAULTS = {
    "/stall": ("timeout", "no first byte in time"),
    "/stall_in_body": ("timeout", "the server went silent"),
    "/drip_body": ("timeout", "the request took too long"),
    "/drip_header": ("timeout", "the header took too long"),
    "/endless_body": ("too_large", "a body of more than 1000000 bytes"),
    "/endless_headers": ("connect_error", "the answer is not HTTP"),
    "/declared_too_large": ("too_large", "a body of more than 1000000 bytes"),
    "/gzip_bomb": ("too_large", "a body of more than 1000000 bytes"),
    "/gzip_cut_off": ("undecodable", "Content-Encoding gzip: the stream is cut off"),
    "/brotli": ("unsupported_type", "Content-Encoding 'br' was not asked for"),
    "/broken_chunking": ("connect_error", ""),
    "/cut_off": ("connect_error", "the body is broken or cut off"),
    "/hang_up": ("connect_error", "the server closed the connection"),
    "/not_http": ("connect_error", "the answer is not HTTP"),
    "/loop": ("too_many_redirects", "more than 5 redirects"),
    "/hops/6": ("too_many_redirects", "more than 5 redirects"),
    "/redirect_to_nothing": ("http_error", "HTTP status 302"),
    "/to_metadata": ("address_refused", "169.254.169.254 is refused (link-local)"),
    # ::ffff:a9fe:a9fe; from Python 3.13 on it is written ::ffff:169.254.169.254.
    "/to_mapped_metadata": ("address_refused", " is refused (link-local)"),
    "/to_file": ("invalid_url", "redirect to scheme 'file' is not http or https: 'file:///etc/passwd'"),
    "/missing": ("http_error", "HTTP status 404"),
    "/gone": ("http_error", "HTTP status 410"),
    "/error": ("http_error", "HTTP status 500"),
    "/empty": ("empty_body", "a body of 0 bytes"),
    "/noai": ("opted_out", "X-Robots-Tag: noai"),
    "/noindex_for_us": ("opted_out", "X-Robots-Tag: noindex"),
    "/expired": ("opted_out", "X-Robots-Tag: unavailable_after"),
    "/noai_and_away": ("opted_out", "X-Robots-Tag: noai"),
    "/private/x.jpg": ("robots_disallowed", "robots.txt: rules"),
    "file:///etc/passwd": ("invalid_url", "scheme 'file' is not http or https: 'file:///etc/passwd'"),
    "http://example.org/" + "a" * 1_000_000: ("invalid_url", "1000019 characters; the limit is 8190"),
    "http://nosuch.invalid/x": ("dns_error", "robots.txt: the host name cannot be resolved"),
    "http://10.0.0.1/x": ("address_refused", "10.0.0.1 is refused (private)"),
    "http://[fe80::1]/x": ("address_refused", "fe80::1 is refused (link-local)"),
    "http://127.0.0.1:25/x": ("address_refused", "port 25 is blocked, as in browsers"),
    "http://127.0.0.1:4/x": ("connect_error", "robots.txt: connection refused"),
}
GOOD = [
    "/good",
    "/wrong_type",
    "/gzipped",
    "/noai_for_others",
    "/slow",
    "/hops/5",
    "/good/ü mit Leerzeichen?q=é|",
]


@pytest.fixture(scope="module")
def answers(server):
    """Every fault and every good path at once: the faults must not cost the good ones anything."""
    paths = [*FAULTS, *GOOD]
    urls = [path if "://" in path else server.url(path) for path in paths]
    with no_dns():
        return dict(zip(paths, fetch_all(CONFIG, *urls), strict=True))


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path[:40])
def test_faults_end_in_their_status(answers, path):
    status, error = FAULTS[path]
    answer = answers[path]
    assert answer.status.value == status
    assert error in answer.error
    assert answer.result is None


@pytest.mark.parametrize("path", GOOD)
def test_good_images_arrive_beside_the_faults(answers, path):
    assert answers[path].status == DownloadStatus.success
    assert answers[path].result == GOOD_JPEG
    assert answers[path].error is None


def test_codes_and_decisions_are_noted(answers):
    assert answers["/gone"].http_status == 410
    assert answers["/good"].http_status == 200
    assert answers["/good"].consent == "robots.txt=allowed:rules; x-robots-tag=allowed:absent"
    assert answers["/noai"].consent == "robots.txt=allowed:rules; x-robots-tag=refused:noai"
    assert answers["/noai_for_others"].consent == "robots.txt=allowed:rules; x-robots-tag=allowed:for others"
    assert answers["/private/x.jpg"].consent == "robots.txt=refused:rules"
    assert answers["http://nosuch.invalid/x"].consent == "robots.txt=refused:dns_error"
    assert answers["file:///etc/passwd"].consent is None
    assert answers["http://10.0.0.1/x"].consent is None


def test_what_is_forbidden_is_never_asked_for(server, answers):
    assert server.requests["/private/x.jpg"] == 0
    assert server.requests["/robots.txt"] == 1


def test_requests_say_who_asks_and_carry_nothing_else(server, answers):
    assert all("User-Agent: crawl2clip/0.1 (+https://example.org/bot)\r\n" in head for head in server.headers)
    assert all("Accept-Encoding: identity\r\n" in head for head in server.headers)
    assert not any("Cookie" in head or "Authorization" in head for head in server.headers)
    assert "/good/%C3%BC%20mit%20Leerzeichen?q=%C3%A9|" in server.requests


def test_loopback_is_refused_by_default(server):
    config = replace(CONFIG, allow_loopback=False)
    urls = [server.url("/good"), server.url("/good", "localhost"), f"http://2130706433:{server.port}/good"]
    before = server.requests.total()
    for answer in fetch_all(config, *urls):
        assert answer.status == DownloadStatus.address_refused
        assert "refused (loopback)" in str(answer.error)
    assert server.requests.total() == before


def test_proxies_from_the_environment_are_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert fetch(CONFIG, server.url("/good")).status == DownloadStatus.success


def test_retryable_faults_are_tried_again_and_others_are_not(server):
    config = replace(CONFIG, retries=2)
    busy, broken, gone = fetch_all(
        config, server.url("/busy_once"), server.url("/broken_once"), server.url("/gone?again")
    )
    assert (busy.status, broken.status) == (DownloadStatus.success, DownloadStatus.success)
    assert server.requests["/busy_once"] == 2
    assert gone.status == DownloadStatus.http_error
    assert server.requests["/gone?again"] == 1


def test_a_host_that_asks_for_a_long_pause_is_left_alone():
    with HostileServer() as server:
        config = replace(CONFIG, per_host_connections=1, retries=3)
        first, *rest = fetch_all(
            config, *(server.url(path) for path in ("/busy_for_an_hour", "/good?1", "/good?2", "/good?3"))
        )
        assert (first.status, first.http_status) == (DownloadStatus.http_error, 429)
        for answer in rest:
            assert answer.status == DownloadStatus.http_error
            assert answer.error == "not tried, host given up: HTTP status 429"
        assert server.requests.total() == 2  # robots.txt and the first


def test_a_host_that_keeps_failing_is_given_up():
    with HostileServer() as server:
        config = replace(CONFIG, per_host_connections=2, max_host_failures=4)
        answers = fetch_all(config, *(server.url(f"/hang_up?{number}") for number in range(50)))
        assert {answer.status for answer in answers} == {DownloadStatus.connect_error}
        assert answers[-1].error == "not tried, host given up: the server closed the connection"
        assert (
            4 <= server.requests.total() - 1 <= 12
        )  # the client tries a kept-alive connection's request twice


def test_connections_to_a_host_are_limited():
    with HostileServer() as server:
        config = replace(CONFIG, per_host_connections=3, first_byte_timeout_s=60.0, total_timeout_s=60.0)

        async def release_when_full() -> None:
            while server.max_simultaneous < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # a fourth would come now
            server.release.set()

        async def main():
            fetcher = Fetcher(config)
            urls = [server.url(f"/held/{number}") for number in range(9)]
            try:
                fetches = asyncio.gather(*(fetcher.fetch(url, keep) for url in urls))
                await asyncio.wait_for(release_when_full(), 60)
                return await fetches
            finally:
                await fetcher.close()

        assert {answer.status for answer in asyncio.run(main())} == {DownloadStatus.success}
        assert server.max_simultaneous == 3


def test_bodies_in_memory_are_limited_while_the_consumer_is_slow(server):
    alive = most = 0

    async def slow_consumer(body: bytes) -> None:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        await asyncio.sleep(0.01)
        alive -= 1

    async def main():
        fetcher = Fetcher(replace(CONFIG, concurrency=4))
        await asyncio.gather(*(fetcher.fetch(server.url(f"/good?{n}"), slow_consumer) for n in range(20)))
        await fetcher.close()

    asyncio.run(main())
    assert most == 4


def test_a_fault_of_the_consumer_is_not_the_networks(server):
    async def full_disk(body: bytes) -> None:
        raise OSError("no space left on device")

    async def main():
        fetcher = Fetcher(CONFIG)
        try:
            await fetcher.fetch(server.url("/good"), full_disk)
        finally:
            await fetcher.close()

    with pytest.raises(OSError, match="no space left"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("robots", "status", "consent"),
    [
        ((404, b""), "success", "robots.txt=allowed:404; x-robots-tag=allowed:absent"),
        ((503, b""), "robots_disallowed", "robots.txt=refused:503"),
        ((429, b""), "robots_disallowed", "robots.txt=refused:429"),
        (None, "timeout", "robots.txt=refused:timeout"),
        ((200, b"User-agent: crawl2clip\nDisallow: /"), "robots_disallowed", "robots.txt=refused:rules"),
        (
            (200, b"User-agent: other\nDisallow: /"),
            "success",
            "robots.txt=allowed:rules; x-robots-tag=allowed:absent",
        ),
        ((200, b"#" * 2_000_000), "success", "robots.txt=allowed:rules; x-robots-tag=allowed:absent"),
    ],
)
def test_robots_answers(robots, status, consent):
    with HostileServer() as server:
        server.robots = robots
        config = replace(CONFIG, retries=1, first_byte_timeout_s=0.3 if robots is None else 2.0)
        answer = fetch(config, server.url("/good"))
        assert (answer.status.value, answer.consent) == (status, consent)
        if status != "success":
            assert server.requests["/good"] == 0


def test_robots_redirects_are_followed_and_a_loop_means_no_rules():
    with HostileServer() as server:
        server.files["/robots.txt"] = response(301, b"", {"Location": "/rules"})
        server.files["/rules"] = response(200, b"User-agent: *\nDisallow: /good")
        assert fetch(CONFIG, server.url("/good")).status == DownloadStatus.robots_disallowed
        server.files["/rules"] = response(301, b"", {"Location": "/robots.txt"})
        assert (
            fetch(CONFIG, server.url("/good")).consent
            == "robots.txt=allowed:404; x-robots-tag=allowed:absent"
        )


def test_consent_can_be_switched_off_and_says_so():
    with HostileServer() as server:
        config = replace(CONFIG, policy=replace(POLICY, robots=False, opt_out_directives=[]))
        answer = fetch(config, server.url("/noai"))
        assert answer.status == DownloadStatus.success
        assert answer.consent == "x-robots-tag=allowed:noai"
        assert server.requests["/robots.txt"] == 0


STRICT = replace(CONFIG, policy=replace(POLICY, tdmrep=True, aipref_usages=["train-ai"]))


@pytest.mark.parametrize(
    ("path", "status", "error", "consent"),
    [
        ("/good", "success", None, "x-robots-tag=allowed:absent; tdmrep=allowed:absent; aipref=allowed:absent"),
        ("/reserved", "opted_out", "tdmrep: header says 1", "; tdmrep=refused:header says 1"),
        ("/no_training", "opted_out", "aipref: train-ai=n (vocab-06)", "aipref=refused:train-ai=n (vocab-06)"),
        ("/good/filed", "opted_out", "tdmrep: file says 1", "tdmrep=refused:file says 1"),
        ("/good/trained", "opted_out", "aipref: train-ai=n (vocab-06)", "aipref=refused:train-ai=n (vocab-06)"),
    ],
)  # fmt: skip
def test_a_strict_policy_asks_tdmrep_and_aipref(path, status, error, consent):
    with HostileServer() as server:
        rules = b'[{"location": "/good/filed", "tdm-reservation": 1}]'
        server.files["/.well-known/tdmrep.json"] = response(200, rules)
        server.robots = (200, b"User-agent: *\nContent-Usage: /good/trained train-ai=n\n")
        answer = fetch(STRICT, server.url(path))
        assert (answer.status.value, answer.error) == (status, error)
        assert consent in str(answer.consent)
        assert server.requests["/good/trained"] == 0  # robots.txt says it before the image is asked for
        lenient = fetch(CONFIG, server.url(path))
        assert lenient.status == DownloadStatus.success
        assert "tdmrep" not in str(lenient.consent)


def test_an_answer_that_is_too_slow_is_given_up(server):
    config = replace(CONFIG, min_bytes_per_s=20_000.0, read_timeout_s=1.0, total_timeout_s=60.0)
    answer = fetch(config, server.url("/trickle"))
    assert (answer.status.value, answer.error) == ("timeout", "slower than 20000 bytes a second")
    assert answer.retryable


def test_a_url_has_a_deadline_for_all_its_requests(server):
    config = replace(CONFIG, retries=50, task_timeout_s=1.5, first_byte_timeout_s=0.4, backoff_s=0.01)
    before = server.requests["/stall"]
    answer = fetch(config, server.url("/stall"))
    assert answer.status == DownloadStatus.timeout
    assert 2 <= server.requests["/stall"] - before <= 6


def test_large_bodies_wait_for_a_place_and_all_arrive():
    """Forty bodies of two megabytes, of which sixteen may be in memory."""
    with HostileServer() as server:
        body = bytes(2_000_000)
        server.files |= {f"/large/{number}": response(200, body) for number in range(40)}
        config = replace(CONFIG, max_bytes=3_000_000, read_timeout_s=30.0, total_timeout_s=60.0)
        answers = fetch_all(config, *(server.url(f"/large/{number}") for number in range(40)))
        assert all(answer.result == body for answer in answers)


def test_kept_alive_connections_are_used_again():
    with HostileServer() as server:
        config = replace(CONFIG, per_host_connections=2)
        fetch_all(config, *(server.url(f"/good?{number}") for number in range(30)))
        assert server.requests.total() == 31
        assert server.connections <= 4


def test_every_hop_asks_its_own_robots():
    with HostileServer() as first, HostileServer() as second:
        second.robots = (200, b"User-agent: *\nDisallow: /")
        first.files["/away"] = response(302, b"", {"Location": second.url("/good")})
        answer = fetch(CONFIG, first.url("/away"))
        assert answer.status == DownloadStatus.robots_disallowed
        assert second.requests == {"/robots.txt": 1}


CERTIFICATES = {  # name -> (subject's address, days that it is valid)
    "good": ("127.0.0.1", 2),
    "other_host": ("127.0.0.9", 2),
    "expired": ("127.0.0.1", -1),
}


def make_certificates(folder) -> None:
    """Certificates of `CERTIFICATES`, signed by folder/authority.pem, and one that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    openssl("req", "-x509", *curve, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "authority.pem",
            "-days", "2", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", "-x509", *curve, "-subj", "/CN=x", "-keyout", "self.key", "-out", "self.pem", "-days", "2",
            "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    for name, (address, days) in CERTIFICATES.items():
        (folder / "names").write_text(f"subjectAltName=IP:{address}\n")
        openssl("req", *curve, "-subj", "/CN=x", "-keyout", f"{name}.key", "-out", "request")
        openssl("x509", "-req", "-in", "request", "-CA", "authority.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", str(days), "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip


def test_tls_faults(tmp_path, monkeypatch):
    make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))

    async def answer(reader, writer):
        with contextlib.suppress(OSError):
            await reader.read(10)
            writer.write(response(200, GOOD_JPEG))
            await writer.drain()
        writer.close()

    async def main():
        fetcher = Fetcher(replace(CONFIG, policy=replace(POLICY, robots=False)))
        servers, answers = [], {}
        try:
            for name in ("good", "self", "other_host", "expired", "no_tls"):
                context = None
                if name != "no_tls":
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
                servers.append(await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context))
                port = servers[-1].sockets[0].getsockname()[1]
                answers[name] = await fetcher.fetch(f"https://127.0.0.1:{port}/x", keep)
            return answers
        finally:
            await fetcher.close()
            for server in servers:
                server.close()

    answers = asyncio.run(main())
    assert answers.pop("good").result == GOOD_JPEG
    assert {answer.status for answer in answers.values()} == {DownloadStatus.tls_error}
    assert "self-signed certificate" in str(answers["self"].error)
    assert "127.0.0.1" in str(answers["other_host"].error)
    assert "expired" in str(answers["expired"].error)
    assert not any(answer.retryable for answer in answers.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_agent": "Mozilla/5.0"}, "download.user_agent is 'Mozilla/5.0'"),
        ({"concurrency": 0}, "download.concurrency is 0; give a number of 1 or more"),
        ({"retries": -1}, "download.retries is -1; give a number of 0 or more"),
        ({"per_host_requests_per_s": 0.0}, "download.per_host_requests_per_s is 0.0"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ConfigError) as raised:
        replace(CONFIG, **change)
    assert words in str(raised.value)
