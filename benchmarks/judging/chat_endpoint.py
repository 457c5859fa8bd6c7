"""A chat model behind an OpenAI-compatible endpoint as a judge.

No other file of this room uses the network, and this one contacts only the host it is given. A time limit holds for
each whole answer, and the API key is removed from everything the endpoint says.
"""

import json
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar, final

from benchmarks.base.json_files import fingerprint
from benchmarks.judging.hidden_key import without_key
from benchmarks.judging.judges import EXCERPT, Choice, Unreadable, excerpt
from benchmarks.judging.settings import EndpointSettings
from rlhf_core.names import counted

ANSWERS: Mapping[str, Choice] = {"A": "first", "B": "second", "tie": "tie"}
TRANSIENT = (408, 409, 425, 429)
"""HTTP statuses tried again, with every one from 500 on."""
LONGEST_WAIT, LONGEST_BODY = 60.0, 2**20
"""Seconds between two tries; bytes of a reply."""
Answer = TypeVar("Answer")


class EndpointError(RuntimeError):
    """The endpoint refused, or kept failing."""


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """Return every reply as it is. No redirect is followed, so the key reaches the named host only."""

    def http_response(self, request: object, response: Any) -> Any:
        return response

    https_response = http_response


class _TransientFailure(Exception):
    """Worth another try: (reason, seconds to wait before it at least)."""


@final
@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """The chat model of ``settings``, asked at temperature 0 for A, B or tie; nothing else is readable.

    ``timeout_seconds`` bounds a whole answer. Time-outs, broken connections, rate limits and server errors are tried
    again, ``attempts`` times in all, waiting twice as long each time. The key is read from its environment variable
    whenever it is needed, held nowhere, and taken out of everything the endpoint says.
    """

    settings: EndpointSettings
    order_sensitive = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """URL, model and prompt; never the key."""
        asked = {"judge_prompt": self.settings.prompt, "answer_tokens": self.settings.answer_tokens}
        return {"kind": "endpoint", "name": self.settings.model, "url": self._address, **asked}

    def prefer(self, instruction: str, first: str, second: str) -> Choice:
        """What the model answers; raises EndpointError where it cannot be had."""
        # no text can contain the hash of itself, so none can close its own mark
        mark = fingerprint([instruction, first, second])[:16]
        text = self.settings.prompt.format(instruction=instruction, first=first, second=second, mark=mark)
        answer = self._complete(text).strip()
        if answer not in ANSWERS:
            raise Unreadable(self._clean(answer)[:EXCERPT])
        return ANSWERS[answer]

    @property
    def _address(self) -> str:
        path = self.settings.url.rstrip("/")
        return path if path.endswith("/chat/completions") else path + "/chat/completions"

    def _complete(self, text: str) -> str:
        question = {"model": self.settings.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        body, reason = json.dumps({**question, "max_tokens": self.settings.answer_tokens}).encode(), ""
        for attempt in range(self.settings.attempts):
            try:
                return self._content(self._post(body))
            except _TransientFailure as failure:
                reason, asked = failure.args
                if attempt + 1 < self.settings.attempts:
                    sleep(min(LONGEST_WAIT, max(self.settings.backoff_seconds * 2**attempt, asked)))
        raise EndpointError(
            f"{self._address} failed {counted(self.settings.attempts, 'time')}, the last time with {reason}"
        )

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "dense-rlhf"}
        headers |= {"Authorization": f"Bearer {key}"} if (key := self.settings.key()) else {}
        request = urllib.request.Request(self._address, data=body, headers=headers, method="POST")
        # requests to this machine itself use no proxy
        proxies = [urllib.request.ProxyHandler({})] if self.settings.is_local else []
        opener = urllib.request.build_opener(_EveryStatus(), *proxies)

        def ask() -> tuple[int, str, str]:
            with opener.open(request, timeout=self.settings.timeout_seconds) as reply:
                return reply.status, reply.headers.get("Retry-After", ""), self._read(reply)

        try:
            status, wait, said = within(self.settings.timeout_seconds, ask)
        except (OSError, HTTPException) as error:
            raise _TransientFailure(self._clean(f"{type(error).__name__}: {error}"), 0.0) from None
        if status in TRANSIENT or status >= 500:
            raise _TransientFailure(f"HTTP {status}: {self._excerpt(said)}", float(wait) if wait.isdecimal() else 0.0)
        if status != 200:
            raise EndpointError(f"{self._address} refused with HTTP {status}: {self._excerpt(said)}")
        return said

    def _read(self, reply: HTTPResponse) -> str:
        """Read the body; stop if the caller no longer waits for it."""
        deadline, body = monotonic() + self.settings.timeout_seconds, b""
        while (part := reply.read1(LONGEST_BODY)) and monotonic() < deadline:
            body += part
            if len(body) > LONGEST_BODY:
                raise OSError(f"reply longer than {LONGEST_BODY} bytes")
        return body.decode("utf-8", errors="replace")

    def _content(self, reply: str) -> str:
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _TransientFailure(f"a reply that is not a chat completion: {self._excerpt(reply)}", 0.0) from None
        return content if isinstance(content, str) else json.dumps(content)

    def _excerpt(self, said: str) -> str:
        return excerpt(self._clean(said))

    def _clean(self, text: str) -> str:
        return without_key(self.settings.key(), text)


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """Return what ``work`` returns, raise what it raises, or raise TimeoutError after ``seconds``.

    A socket's own time-out starts again with every byte of a header and with every address of a name, and does not
    cover the name look-up. Work that is late goes on in a thread that does not keep the process alive.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no whole reply within {seconds:g} s, which timeout_seconds allows") from None
