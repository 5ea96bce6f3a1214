"""Who is answered and how much at once: hosts, origins, the token; slow, large and many requests; slots that come free."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import serving_world as world

from anygpt_jax.serving.limits import Limits


@pytest.fixture(scope="module")
def server():
    with world.serving() as running:
        yield running


class TestTrust:
    @pytest.fixture(scope="class")
    def locked(self):
        with world.serving(token="correct-horse-battery") as running:
            yield running

    def test_the_token_opens_the_api_and_nothing_else_does(self, locked):
        for given in (None, "Bearer wrong", "Basic correct-horse-battery", "correct-horse-battery", "Bearer ö"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            reply = locked.chat("x", headers)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert locked.ask("GET", "/metrics", None, headers).status == 401
        assert not locked.service.seen
        assert locked.chat("x", {"Authorization": "Bearer correct-horse-battery"}).status == 200
        assert locked.ask("GET", "/healthz").status == 200 and locked.ask("GET", "/").status == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "[::2]", "10.0.0.1", ""]
    )
    def test_a_name_that_was_pointed_here_is_not_answered(self, server, host):
        reply = server.ask("GET", "/healthz", None, {"Host": host})
        assert (reply.status, reply.json()["error"]["code"]) == (403, "bad_host")

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:9"])
    def test_its_own_names_are(self, server, host):
        assert server.ask("GET", "/healthz", None, {"Host": host}).status == 200

    @pytest.mark.parametrize("headers", [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://[::"},
        {"Sec-Fetch-Site": "cross-site"},
    ])  # fmt: skip
    def test_pages_of_other_origins_are_not(self, server, headers):
        assert server.chat("x", headers).status == 403

    def test_the_page_itself_is(self, server):
        assert (
            server.chat("x", {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}).status
            == 200
        )


class TestLoad:
    def test_too_large_a_body_is_refused_before_it_is_read(self):
        with world.serving(limits=Limits(body_bytes=1000)) as small:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            with socket.create_connection((small.host, small.port), 10) as s:
                s.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
                assert s.recv(4096).startswith(b"HTTP/1.1 413")
            with socket.create_connection((small.host, small.port), 10) as s:  # chunked: no length is promised
                s.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"400\r\n" + b"x" * 1024 + b"\r\n")
                assert s.recv(4096).startswith(b"HTTP/1.1 413")

    @pytest.mark.parametrize("refusal", [413, 429])
    def test_who_is_still_sending_sees_the_refusal(self, refusal):
        limits = Limits(bodies_bytes=9_000_000) if refusal == 429 else Limits(body_bytes=8_000_000)
        with world.serving(limits=limits) as server:
            assert server.ask("POST", "/v1/chat/completions", b" " * 15_000_000).status == refusal

    def test_slow_bodies_and_slow_headers_are_cut_off(self):
        with world.serving(limits=Limits(body_seconds=0.3, header_seconds=0.5)) as quick:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            with socket.create_connection((quick.host, quick.port), 10) as s:
                s.sendall(head + b"Content-Length: 100\r\n\r\n{")
                assert s.recv(4096).startswith(b"HTTP/1.1 408")
            with socket.create_connection((quick.host, quick.port), 10) as s:
                s.sendall(head)
                assert s.recv(4096) == b""
            with socket.create_connection((quick.host, quick.port), 10) as s:  # after an answer too
                s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200" in s.recv(4096)
                s.sendall(b"GET /hea")
                started = time.monotonic()
                while s.recv(4096):
                    pass
                assert time.monotonic() - started < 5

    def test_one_connection_too_many_is_told_to_come_again(self):
        with world.serving(limits=Limits(connections=3)) as narrow:
            held = [socket.create_connection((narrow.host, narrow.port), 10) for _ in range(3)]
            time.sleep(0.1)
            with socket.create_connection((narrow.host, narrow.port), 10) as s:
                assert s.recv(4096).startswith(b"HTTP/1.1 429")
            for s in held:
                s.close()
            time.sleep(0.1)
            assert narrow.ask("GET", "/healthz").status == 200

    def test_a_full_queue_gives_429_and_nothing_else(self):
        service = world.Service(queue=2, slots=2, pace=0.02)
        with world.serving(service) as full, ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(lambda i: full.chat("x", seed=i), range(48)))
            statuses = [r.status for r in replies]
            assert set(statuses) == {200, 429}
            refused = next(r for r in replies if r.status == 429)
            assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "busy"
            assert full.idle()
            # Of several answers all are taken on or none.
            assert full.chat("x", n=4).status == 200 and full.idle()
            service.slots = service.queue = 1
            assert full.chat("x", n=3).status == 429
            assert full.idle()

    def test_bodies_are_bounded_together(self):
        with world.serving(limits=Limits(body_bytes=1000, bodies_bytes=1500)) as small:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            with socket.create_connection((small.host, small.port), 10) as s:
                s.sendall(head + b"Content-Length: 900\r\n\r\n")
                time.sleep(0.2)
                assert small.api.bodies.held == 900
                body = json.dumps({"messages": [{"role": "user", "content": "x"}], "user": "x" * 700}).encode()
                assert small.ask("POST", "/v1/chat/completions", body).status == 429
                assert small.chat("x").status == 200
            time.sleep(0.2)
            assert small.api.bodies.held == 0 and small.ask("POST", "/v1/chat/completions", body).status == 200

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_leaves_frees_its_slot(self, stream):
        service = world.Service(slots=1, pace=0.05, codes=1000)
        with world.serving(service) as busy:
            body = json.dumps(
                {"messages": [{"role": "user", "content": "x"}], "modalities": ["music"], "stream": stream}
            )
            with socket.create_connection((busy.host, busy.port), 10) as s:
                head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(0.3)
                assert len(service.held) == 1
            assert busy.idle()  # it would have taken ten seconds
            assert busy.metric("anygpt_disconnects_total") == 1

    def test_an_answer_that_takes_too_long_is_ended(self):
        with world.serving(world.Service(pace=0.1), Limits(answer_seconds=0.3)) as slow:
            reply = slow.chat("x")
            assert (reply.status, reply.json()["error"]["code"]) == (504, "deadline")
            *_, error, end = slow.chat("x", stream=True).events()
            assert error["error"]["code"] == "deadline" and end == "[DONE]"
            assert slow.idle()

    def test_a_model_that_fails_is_an_error_of_ours(self):
        with world.serving(world.Service(fails="error: it broke")) as broken:
            reply = broken.chat("x")
            assert reply.status == 500 and "it broke" not in reply.body.decode()
            assert broken.chat("x", stream=True).events()[-2]["error"]["type"] == "server_error"

    def test_draining_finishes_what_runs_and_takes_nothing_new(self):
        service = world.Service(pace=0.1)
        with world.serving(service) as leaving, ThreadPoolExecutor(1) as pool:
            running = pool.submit(leaving.chat, "x")
            while not service.held:
                time.sleep(0.01)
            leaving.api.draining = True
            assert leaving.ask("GET", "/healthz").status == 503
            refused = leaving.chat("x")
            assert refused.status == 503 and refused.headers["retry-after"]
            assert running.result().status == 200
