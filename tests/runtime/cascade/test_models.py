"""Language models behind a server: a real server on this machine that answers well, late or badly.

The models that run in this process are tested in `test_embedded.py`, which needs their packages.
"""

import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.models import EndpointModel, ModelError, Requests, chunk_pieces
from counterpoint.runtime.cascade.thinking import Answerer
from tests.runtime.cascade.scripted import Stage

ASKED = [{"role": "user", "content": "Hello?"}]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its server's function says."""

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        self.server.asked.append((self.path, self.headers.get("Authorization"), asked))  # type: ignore[attr-defined]
        self.server.reply(self)  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def begin(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, text: str) -> None:
        with suppress(OSError):  # the client may have left
            self.wfile.write(f"data: {text}\n\n".encode())
            self.wfile.flush()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait so long, or until the client has what it wants; return whether it has."""
        return self.server.is_done.wait(seconds)  # type: ignore[attr-defined]

    def piece(self, text: str) -> None:
        self.event(json.dumps({"choices": [{"delta": {"content": text}}]}))


Reply = Callable[[Handler], None]


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[tuple[str, str | None, dict[str, object]]]]]:
    """Run a server, and give its address and what it is asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []  # type: ignore[attr-defined]
    server.reply = reply  # type: ignore[attr-defined]
    server.is_done = threading.Event()  # type: ignore[attr-defined]
    server.daemon_threads = False  # closing the server waits for its threads
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", server.asked  # type: ignore[attr-defined]
    finally:
        server.is_done.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


def well(handler: Handler) -> None:
    handler.begin()
    handler.event(json.dumps({"choices": [{"delta": {"role": "assistant"}}]}))
    for piece in ("Hel", "lo", " there."):
        handler.piece(piece)
    handler.event("[DONE]")


def late(handler: Handler) -> None:
    handler.wait()


def stalling(handler: Handler) -> None:
    handler.begin()
    handler.piece("One")
    handler.wait()


def dripping(handler: Handler) -> None:
    handler.begin()
    while not handler.wait(0.01):
        handler.piece("x")


def drip(handler: Handler, beginning: bytes) -> None:
    """Send single bytes after a beginning; a client that listens to all of them is noted."""
    with suppress(OSError):
        handler.wfile.write(beginning)
        for _ in range(3000):  # half a minute
            if handler.wait(0.01):
                return
            handler.wfile.write(b"x")
        handler.server.asked.append(("all of it was heard", None, {}))  # type: ignore[attr-defined]


def dripping_a_line(handler: Handler) -> None:
    drip(handler, b"HTTP/1.0 200 OK\r\n\r\ndata: ")


def dripping_headers(handler: Handler) -> None:
    drip(handler, b"HTTP/1.0 200 OK\r\nX-Long: ")


def dripping_the_status(handler: Handler) -> None:
    drip(handler, b"HTTP/1.0 200 O")


def dripping_a_chunk(handler: Handler) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFF\r\ndata: ")


def dripping_a_refusal(handler: Handler) -> None:
    drip(handler, b"HTTP/1.0 503 No\r\nContent-Length: 100000\r\n\r\n")


def leaving(handler: Handler) -> None:
    handler.begin()
    handler.piece("The capital of France is. ")


def naming_the_end(handler: Handler) -> None:
    handler.begin()
    handler.piece("Yes.")
    handler.event(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}))


def saying_null(handler: Handler) -> None:
    handler.begin()
    handler.event(json.dumps({"choices": [{"delta": {"role": "assistant", "content": None}}]}))
    handler.piece("Yes.")
    handler.event(json.dumps({"choices": [{"delta": None, "finish_reason": "stop"}]}))


def nonsense(handler: Handler) -> None:
    handler.begin()
    handler.event("{no json")


def refusing(handler: Handler) -> None:
    handler.begin(503)
    handler.wfile.write(b"no model")


def test_pieces_come_as_they_are_written() -> None:
    with serving(well) as (url, asked):
        model = EndpointModel(url + "/", "tiny", "secret")
        assert list(model(ASKED, 7)) == ["Hel", "lo", " there."]
    ((path, key, content),) = asked
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert content["messages"] == ASKED
    assert (content["model"], content["max_tokens"], content["stream"]) == ("tiny", 7, True)


LONG_S = 60.0  # longer than any load of the machine holds up the server


@pytest.mark.parametrize(
    ("reply", "wait_s", "limit_s", "reason"),
    [
        (late, 0.1, LONG_S, "must answer within 0.1 s"),
        (stalling, 0.1, LONG_S, "must answer within 0.1 s"),
        (dripping, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (dripping_a_line, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (dripping_headers, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (dripping_the_status, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (dripping_a_chunk, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (dripping_a_refusal, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (late, LONG_S, 0.2, "must end its answer within 0.2 s"),
        (nonsense, LONG_S, LONG_S, "must send events of OpenAI's form"),
        (refusing, LONG_S, LONG_S, "status 503, no model"),
        (leaving, LONG_S, LONG_S, "must say that its answer has ended"),
    ],
)
def test_bad_server_is_one_line(reply: Reply, wait_s: float, limit_s: float, reason: str) -> None:
    with serving(reply) as (url, asked):
        model = EndpointModel(url, wait_s=wait_s, limit_s=limit_s)
        with pytest.raises(ModelError, match=reason):
            list(model(ASKED, 7))
        assert {path for path, *_ in asked} <= {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("wait_s", "limit_s", "reason"),
    [(0.1, LONG_S, "answer within 0.1 s"), (LONG_S, 0.2, "end its answer within 0.2 s")],
)
def test_resolver_that_hangs_is_one_line_and_nothing_is_asked_later(
    wait_s: float, limit_s: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo
    goes_on = threading.Event()

    def hang(*given: Any, **named: Any) -> Any:
        assert goes_on.wait(60)
        return look_up(*given, **named)

    with serving(well) as (url, asked):
        servers = set(threading.enumerate())
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        with pytest.raises(ModelError, match=reason):
            list(EndpointModel(url, wait_s=wait_s, limit_s=limit_s)(ASKED, 7))
        (left,) = set(threading.enumerate()) - servers
        goes_on.set()
        left.join(60)
    assert asked == []


@pytest.mark.parametrize("reply", [naming_the_end, saying_null])
def test_answer_may_end_with_a_reason_to_finish(reply: Reply) -> None:
    with serving(reply) as (url, _):
        assert list(EndpointModel(url)(ASKED, 7)) == ["Yes."]


@contextmanager
def closed_address() -> Iterator[str]:
    """Give an address at which nobody listens, and which no other program can take meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}/v1"


def test_server_that_is_down_is_one_line() -> None:
    with closed_address() as url, pytest.raises(ModelError, match="must be reachable"):
        list(EndpointModel(url)(ASKED, 7))


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:80", "ftp://a", "http://", "http://:80/v1", "http://[::1/v1"),
        *("http://a:abc/v1", "http://a:99999/v1", "http://a b/v1", "http://a..b/v1"),
        *("http://a/b c/v1", "https://a/\N{LATIN SMALL LETTER U WITH DIAERESIS}/v1"),
    ],
)
def test_address_must_be_one(url: str) -> None:
    with pytest.raises(UserError, match=r"must begin with http.*: got ") as told:
        EndpointModel(url)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["secret\n", "secr\u00e9t"])
def test_key_must_be_one_line_and_is_not_told(key: str) -> None:
    with pytest.raises(UserError, match="The key must be printable ASCII") as told:
        EndpointModel("http://127.0.0.1:8080/v1", key=key)
    assert "secr" not in str(told.value)


def test_address_of_many_figures_needs_no_port() -> None:
    """Its end is no port, as the connections of Python take it for."""
    connection = EndpointModel("http://[::1]/v1")._connection()
    assert (connection.host, connection.port) == ("::1", 80)


def test_conversation_survives_a_server_that_is_down_and_one_that_stalls() -> None:
    stage = Stage()
    with closed_address() as url:
        down = Answerer(EndpointModel(url))
        cascade = stage.cascade(replace(stage.engines(), answer=down))
        cascade.hear(stage.sound("what is this? - - - - - - - - - -"))
    (error,) = cascade.timeline().where(kind="error")
    assert "must be reachable" in error.text
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "Sorry, I cannot answer that now."
    with serving(stalling) as (url, _):
        stage = Stage()
        slow = Answerer(EndpointModel(url, wait_s=0.1))
        cascade = stage.cascade(replace(stage.engines(), answer=slow))
        cascade.hear(stage.sound("what is this? - - - - - - - - - -"))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "Sorry, I cannot answer that now."


def test_requests_of_several_threads_have_all_ended_when_the_engine_ends() -> None:
    """One that is lost would work on in an engine that is gone, which may abort the process."""
    requests = Requests()
    ended: list[int] = []

    def ask(number: int) -> None:
        is_dropped = threading.Event()

        def run() -> None:
            is_dropped.wait(5)
            time.sleep(0.01)  # the step in which it is
            ended.append(number)

        requests.start(run, is_dropped)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        lanes = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    finally:
        sys.setswitchinterval(interval_s)
    requests.end(5.0)
    assert sorted(ended) == list(range(100))


def test_refusal_of_the_engine_is_no_silence() -> None:
    refusal = {"error": {"code": 400, "message": "request (9031 tokens) is too long"}}
    (found,) = chunk_pieces(refusal)
    assert isinstance(found, ModelError)
    assert "9031 tokens" in str(found)
    told = [{"prompt_progress": {}}, {"choices": [{"delta": {"content": "Hi"}}, {"delta": {}}]}]
    assert list(chunk_pieces(json.dumps(told))) == ["", "Hi"]
