"""An endpoint that takes its time, nests its answer, or says the key back in another spelling."""

import base64
import html
import json
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from stub_endpoint import serving

from benchmarks.judging.chat_endpoint import EndpointError, EndpointJudge, within
from benchmarks.judging.hidden_key import without_key
from benchmarks.judging.judges import Unreadable
from benchmarks.judging.settings import EndpointSettings

KEY = "sk-secret/+0123456789&x"
SPELT = {
    "as it is": KEY,
    "in JSON": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "in JSON, twice": "".join(f"\\\\u{ord(c):04X}" for c in KEY),
    "in hexadecimal escapes": "".join(f"\\x{ord(c):02x}" for c in KEY),
    "its slash escaped": KEY.replace("/", "\\/"),
    "in a URL": quote(KEY, safe=""),
    "in a URL, every character": "".join(f"%{ord(c):02X}" for c in KEY),
    "in a URL, twice": quote(quote(KEY, safe=""), safe=""),
    "in HTML": html.escape(KEY),
    "in HTML by numbers": "".join(f"&#{ord(c)};" for c in KEY),
    "in HTML by hexadecimal numbers": "".join(f"&#x{ord(c):x};" for c in KEY),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "in base64 with what stands before it": base64.b64encode(f"Authorization: Bearer {KEY}".encode()).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(f"~~~{KEY}".encode()).decode().rstrip("="),
    "in lines of base64": base64.encodebytes(f"{'Authorization: ' * 6}{KEY}".encode()).decode(),
    "in base64 after a word": "your token " + base64.b64encode(KEY.encode()).decode(),
    "in hexadecimal": KEY.encode().hex(),
    "in two lines": f"{KEY[:9]}\n{KEY[9:]}",
    "letter by letter": " ".join(KEY),
    "quoted": '", "'.join(KEY),
}


def judge(url, **changes):
    settings = {"model": "m", "attempts": 1, "timeout_seconds": 5.0, "api_key_env": "JUDGE_KEY"}
    return EndpointJudge(settings=EndpointSettings(url=url, **{**settings, **changes}))


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.mark.parametrize("spelling", SPELT)
def test_the_key_is_shown_in_no_spelling(spelling):
    told = SPELT[spelling]
    answers = [(403, {}, f"no: {told}."), (200, {}, f"<p>{told}</p>"), f"it is {told}"]
    with serving() as start:
        stub = start(lambda text, n: answers[n])
        for error in (EndpointError, EndpointError, Unreadable):
            with pytest.raises(error) as refused:
                judge(stub.url).prefer("Why?", "one", "two")
            assert told not in str(refused.value)
            assert "key]" in str(refused.value) or "the key" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["sk-secret is no key", "c2stc2VjcmV0", "prompt is empty", "%zz \\u00 &#; ====", "no newline", "A" * 4001]
)
def test_other_texts_are_shown_as_they_are(text):
    assert without_key(KEY, text) == text
    assert without_key("", text) == text
    assert without_key("none", text) == text  # short keys are found in one piece only


def test_a_key_in_the_address_is_refused_unseen():
    for told in (KEY.partition("&")[0] + "%26x", quote(KEY, safe="")):
        with pytest.raises(ValueError, match="scheme, host and path only") as refused:
            judge(f"https://example.org/{told}")
        assert "secret" not in str(refused.value)


@contextmanager
def raw(*parts):
    """Sends every part to each client that has asked, a fortieth of a second apart; the address, and who came when."""
    came, gone = [], threading.Event()

    def answer(client):
        with client:
            client.recv(65536)
            try:
                for part in parts:
                    client.sendall(part)
                    if gone.wait(0.025):
                        return
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):  # a socket closed with a request unread resets what it has sent
                    pass
            except OSError:  # the client gave up
                return

    def serve(server):
        while not gone.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            came.append(time.monotonic())
            threads.append(threading.Thread(target=answer, args=(client,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=serve, args=(server,))]
        threads[0].start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", came
        gone.set()
        socket.create_connection(server.getsockname()).close()  # wakes accept
        for thread in threads:
            thread.join()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [b"H"] * 40,
        [HEAD + b"X: ", *[b"a"] * 40],
        [HEAD, *[b"X: a\r\n"] * 40],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 40,
        [HEAD + b"Content-Length: 999\r\n\r\n", *[b"{"] * 40],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n{\r\n"] * 40],
    ],
    ids=["status line", "one header", "headers", "continue", "body", "chunks"],
)
def test_the_time_out_bounds_a_whole_answer_however_it_drips(parts):
    with raw(*parts) as (url, came):
        with pytest.raises(EndpointError, match="2 times, .*no whole reply within 0.2 s, which timeout_seconds allows"):
            judge(url, timeout_seconds=0.2, attempts=2, backoff_seconds=0.01).prefer("Why?", "one", "two")
        ended = time.monotonic()
    assert 0.2 <= came[1] - came[0] < 0.7
    assert ended - came[1] < 0.7


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        DEEP, f'{{"choices": {DEEP}}}', "{" + '"a":{' * 50_000, "[]", "7", "NaN", "null", '"A"', "9" * 5000, "", "\x00",
        '{"choices": {"0": 1}}', '{"choices": [7]}', '{"choices": [{"message": "A"}]}',
    ],
)  # fmt: skip
def test_an_answer_that_is_no_chat_completion_is_said_in_one_line(body):
    with serving() as start:
        stub = start(lambda text, n: (200, {}, body))
        with pytest.raises(EndpointError, match="the last time with a reply that is not a chat completion") as refused:
            judge(stub.url).prefer("Why?", "one", "two")
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, 7, float("nan"), ["A"], {"A": 1}, "\ud800", "A\ud800", "ä"])
def test_an_answer_of_another_kind_is_unreadable(content):
    body = json.dumps({"choices": [{"message": {"content": content}}]})
    with serving() as start, pytest.raises(Unreadable):
        judge(start(lambda text, n: (200, {}, body)).url).prefer("Why?", "one", "two")


@pytest.mark.parametrize(
    ("body", "said"), [(b"\x1f\x8b\xff\xfe", "not a chat completion"), (b"[" * 2**21, "reply longer than 1048576 byte")]
)
def test_bytes_that_are_no_text_and_bodies_without_end_are_refused(body, said):
    with raw(HEAD + b"Content-Encoding: gzip\r\n\r\n" + body) as (url, _), pytest.raises(EndpointError, match=said):
        judge(url).prefer("Why?", "one", "two")


@pytest.mark.parametrize("url", ["https://h:70000/v1", "https://h:x/v1", "https://h:0/v1", "https://[::1/v1", "https:"])
def test_an_address_that_cannot_be_is_refused(url):
    with pytest.raises(ValueError, match=r"[Pp]ort|IPv6|must look like"):
        judge(url)


def test_what_the_work_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 / 0)
    assert within(1, lambda: "done") == "done"
