"""Language models that complete a conversation piece by piece: three ways to the same function.

A `Complete` gets messages ("role" and "content", as everywhere) and the largest number of tokens,
and yields pieces of text as they are written. Anything else that does so may take its place.
"""

import atexit
import http.client
import io
import json
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions

Message = Mapping[str, str]
Complete = Callable[[Sequence[Message], int], Iterator[str]]
"""Completes a conversation: messages and the largest number of tokens -> pieces of the answer.

An empty piece tells that the model works; whoever does not want the rest may leave then.
"""

_CONTEXT = 8192  # of all slots together
_SLOTS = 2  # one keeps the beginning of the notes' prompt, the other that of the answers'
_READ_AT_ONCE = 64  # tokens of a prompt; as fast as more, and between them a request can end
_REPEATED = 1.05  # a small model soon gives its last answers again, whatever it is asked
_REPEATED_TOKENS = 256
_ENDING_S = 5.0
_LONGEST_LINE = 1 << 20
_CONNECTIONS: Mapping[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


class ModelError(UserError):
    """A language model cannot be reached, is too slow, refuses, or answers nonsense."""


class TowerModel:
    """A published model of text, run by this library's own tower and sessions.

    Args:
        path: Folder or GGUF file of a model that knows conversations.
        device: Device of the computation; see `load`.

    Raises:
        UserError: It is no such model.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        loaded = load(path, device)
        if loaded.published is None or loaded.published.chat is None:
            raise UserError(f"{path} must be a published model that knows conversations.")
        self._chat = loaded.published.chat()
        self._tokenizer = loaded.tokenizer
        self._system = loaded.system
        self._lock = threading.Lock()  # its sessions share the threads of torch

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        """See `Complete`."""
        with self._lock:
            sessions = Sessions(self._system, 1, sliding=True)
            end_id = self._tokenizer.end_id
            sampling = Sampling(temperature=0.0)
            session = sessions.start(0, sampling, end_id=end_id, max_sampled=most_tokens)
            sessions.feed({0: self._chat(messages)})
            ids: list[int] = []
            shown = ""
            while not session.ended:
                sessions.step()
                if session.sampled[-1] == end_id:
                    break
                ids.append(session.sampled[-1])
                text = self._tokenizer.decode(np.array(ids))
                if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a letter of several tokens
                    yield text[len(shown) :]
                    shown = text


class Requests:
    """The threads in which an engine works: all of them must have ended before the engine does.

    Its methods may be called by several threads at once: every lane asks in a thread of its own.
    """

    def __init__(self) -> None:
        self._running: list[tuple[threading.Event, threading.Thread]] = []
        self._lock = threading.Lock()

    def start(self, run: Callable[[], None], is_dropped: threading.Event) -> None:
        """Begin a request.

        Args:
            run: Works in a thread of its own.
            is_dropped: Tells it to end soon.
        """
        thread = threading.Thread(target=run, daemon=True)
        with self._lock:  # also around the start: a thread that was not started is not alive
            self._running = [one for one in self._running if one[1].is_alive()]
            self._running.append((is_dropped, thread))
            thread.start()

    def end(self, wait_s: float) -> None:
        """Drop every request, and wait so many seconds at most for each."""
        with self._lock:
            running, self._running = self._running, []
        for is_dropped, _ in running:
            is_dropped.set()
        for _, thread in running:
            thread.join(wait_s)


def chunk_pieces(chunk: Any) -> Iterator[str | ModelError]:
    """Yield what llama.cpp tells in a chunk: text, a sign that it works (empty), or a refusal.

    It raises nothing for a request that it refuses.
    """
    given = json.loads(chunk) if isinstance(chunk, str) else chunk
    for one in given if isinstance(given, list) else [given]:
        if "error" in one:
            yield ModelError(f"The language model refused: {one['error']['message']}.")
        if "prompt_progress" in one:
            yield ""
        for choice in one.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                yield str(text)


class LlamaCppModel:
    """A GGUF file, run by llama.cpp (package `xllamacpp`) in this process.

    It keeps what it has computed of the last prompt in each of its slots. All prompts with the same
    first message use the same slot, one after another: in another slot a prompt would be computed
    from its beginning, and what is kept there would be lost. So all conversations on one model
    share one slot for each kind of prompt, and their answers are written one after another. While
    a prompt is read, empty pieces are yielded, so that a request that is dropped ends soon.

    The likeliest token is taken, after the scores of those among the last 256 are divided by 1.05.

    Args:
        path: The GGUF file.
        num_threads: Threads of the network. Its threads wait for each other after every product, so
            a second thread on a busy machine makes it many times as slow.

    Raises:
        MissingPackageError: The extra `offline` is not installed.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        package: Any = optional_module("xllamacpp")
        settings = package.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = _CONTEXT
        settings.n_parallel = _SLOTS
        settings.n_batch = _READ_AT_ONCE
        settings.cache_ram_mib = 0  # it would keep states of old prompts, up to 8 GiB
        settings.cpuparams.n_threads = num_threads
        settings.cpuparams_batch.n_threads = num_threads
        settings.verbosity = -1
        self._server: Any = package.Server(settings)
        self._requests = Requests()
        self._slots: dict[str, int] = {}  # by first message, the one used last at the end
        self._lock = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        """End what runs, and then the engine: it aborts the process if its threads still run."""
        self._requests.end(_ENDING_S)
        self._server = None

    def _slot(self, beginning: str) -> int:
        """Return the slot of a first message: its own, or the one that was used longest ago."""
        with self._lock:
            slot = self._slots.pop(beginning, None)
            if slot is None:
                is_full = len(self._slots) == _SLOTS
                slot = self._slots.pop(next(iter(self._slots))) if is_full else len(self._slots)
            self._slots[beginning] = slot
            return slot

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        """See `Complete`."""
        pieces: queue.Queue[str | Exception | None] = queue.Queue()
        is_dropped = threading.Event()
        slot = self._slot(messages[0]["content"])

        def take(chunk: Any) -> bool:
            for piece in chunk_pieces(chunk):
                pieces.put(piece)
            return is_dropped.is_set()  # True ends the completion

        def run() -> None:
            request = {
                "messages": [dict(message) for message in messages],
                "max_tokens": most_tokens,
                "temperature": 0.0,
                "repeat_penalty": _REPEATED,
                "repeat_last_n": _REPEATED_TOKENS,
                "cache_prompt": True,
                "id_slot": slot,
                "return_progress": True,
                "stream": True,
            }
            try:
                self._server.handle_chat_completions(request, take)
                pieces.put(None)
            except Exception as error:  # it is raised in the thread that reads
                pieces.put(error)

        self._requests.start(run, is_dropped)
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            is_dropped.set()


class EndpointModel:
    """A model behind a server that speaks OpenAI's `/chat/completions`, over plain HTTP or HTTPS.

    Args:
        url: Address up to `/v1`, such as "http://127.0.0.1:8080/v1".
        model: Name of the model there.
        key: Key that the server wants; empty for none.
        wait_s: Longest time to connect, from looking up the name of the host on; to send a request;
            and until the next bytes come.
        limit_s: Longest time of a whole answer, however slowly its bytes come.

    Raises:
        UserError: It is no address, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        key: str = "",
        *,
        wait_s: float = 5.0,
        limit_s: float = 30.0,
    ) -> None:
        self._url = url
        self._model = model
        self._key = key
        self._wait_s = wait_s
        self._limit_s = limit_s
        if not (key.isascii() and key.isprintable()):  # the key itself is told to nobody
            raise UserError(
                f"The key must be printable ASCII in one line: got {len(key)} characters of which "
                "some are not. Look for a line break at its end."
            )
        try:
            self._parts = _address(url)
            self._path = self._parts.path.rstrip("/") + "/chat/completions"
            self._connection().putrequest("POST", self._path)  # checks them, and sends nothing
        except (ValueError, http.client.InvalidURL) as error:
            raise UserError(
                "The address must begin with http:// or https:// and a host, such as "
                f"http://127.0.0.1:8080/v1: got {url!r} ({error})."
            ) from None

    def __call__(self, messages: Sequence[Message], most_tokens: int) -> Iterator[str]:
        """See `Complete`.

        Raises:
            ModelError: The server fails or is too slow.
        """
        ends_s = time.monotonic() + self._limit_s
        connection = self._connection()
        try:
            _connect(connection, min(self._wait_s, self._limit_s))
            connection.sock.settimeout(min(self._wait_s, max(ends_s - time.monotonic(), 0.001)))
            self._ask(connection, messages, most_tokens)
            yield from self._pieces(_TimedReader(connection.sock, self._wait_s, ends_s))
        except TimeoutError:
            must = f"answer within {self._wait_s:g} s"
            if time.monotonic() >= ends_s:
                must = f"end its answer within {self._limit_s:g} s"
            raise ModelError(f"{self._url} must {must}: it did not.") from None
        except (OSError, http.client.HTTPException) as error:
            raise ModelError(f"{self._url} must be reachable: {error}.") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        kind = _CONNECTIONS[self._parts.scheme]
        # Without a port it would take the end of an IPv6 address for one.
        port = kind.default_port if self._parts.port is None else self._parts.port
        wait_s = min(self._wait_s, self._limit_s)
        return kind(self._parts.hostname or "", port, timeout=wait_s)

    def _ask(
        self, connection: http.client.HTTPConnection, messages: Sequence[Message], most: int
    ) -> None:
        content = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "max_tokens": most,
            "temperature": 0.0,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection.request("POST", self._path, json.dumps(content), headers)

    def _pieces(self, reader: "_TimedReader") -> Iterator[str]:
        response = http.client.HTTPResponse(cast("socket.socket", reader), method="POST")
        with response:
            response.begin()
            if response.status != 200:
                told = response.read(500).decode(errors="replace")
                raise ModelError(f"{self._url} must answer: status {response.status}, {told}.")
            has_ended = False
            while line := response.readline(_LONGEST_LINE):
                text = line.decode(errors="replace").strip()
                if text == "data: [DONE]":
                    return
                if text.startswith("data:"):
                    found = self._delta(text.removeprefix("data:"))
                    has_ended |= found.has_ended
                    yield from found.pieces
            if not has_ended:  # a server that dies would pass for one that has said all
                raise ModelError(f"{self._url} must say that its answer has ended: it did not.")

    def _delta(self, text: str) -> "_Delta":
        """Return what an event tells."""
        pieces: list[str] = []
        has_ended = False
        try:
            for choice in json.loads(text)["choices"]:
                has_ended |= choice.get("finish_reason") is not None
                delta = choice["delta"]  # some servers send null where nothing is said
                if delta is not None and (piece := delta.get("content")):
                    pieces.append(str(piece))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError(
                f"{self._url} must send events of OpenAI's form: got {text[:80]!r}."
            ) from None
        return _Delta(pieces, has_ended)


def _address(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address.

    Raises:
        ValueError: It is none.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _CONNECTIONS or not parts.hostname:
        raise ValueError("one of them is missing")
    parts.hostname.encode("idna")  # as it is looked up
    return parts


def _connect(connection: http.client.HTTPConnection, wait_s: float) -> None:
    """Open a connection.

    Nothing interrupts a resolver that hangs, and the timeout of a socket is that of one of the
    addresses of a host. So a thread does it, which is left behind if it takes too long.

    Raises:
        TimeoutError: It takes too long.
        Exception: Whatever went wrong.
    """
    faults: list[Exception] = []
    is_left = threading.Event()

    def connect() -> None:
        try:
            connection.connect()
        except Exception as error:  # it is raised in the thread that waits
            faults.append(error)
        if is_left.is_set():
            connection.close()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(wait_s)
    if thread.is_alive():
        is_left.set()
        raise TimeoutError
    if faults:
        raise faults[0]


class _Delta(NamedTuple):
    """What an event of a server tells: pieces of text, and whether the answer ends with them."""

    pieces: list[str]
    has_ended: bool


class _TimedReader(io.RawIOBase):
    """What an open socket receives, until a moment.

    The timeout of a socket is that of one reading. A server that sends a byte now and then would
    hold its reader far beyond the limit: within a line, in the headers, in the size of a chunk.
    """

    def __init__(self, connected: socket.socket, wait_s: float, ends_s: float) -> None:
        self._socket = connected
        self._wait_s = wait_s
        self._ends_s = ends_s

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return itself as a file: all that `HTTPResponse` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`.

        Raises:
            TimeoutError: Nothing came for `wait_s` seconds, or the moment has passed.
        """
        rest_s = self._ends_s - time.monotonic()
        if rest_s <= 0:
            raise TimeoutError
        self._socket.settimeout(min(self._wait_s, rest_s))
        return self._socket.recv_into(buffer)
