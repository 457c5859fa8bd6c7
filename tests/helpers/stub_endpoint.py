"""A chat endpoint on loopback that says what a test wants, and remembers what it was asked."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """An OpenAI-compatible endpoint on loopback. ``play(text, n)``, n counting from 0, gives the answer as a text, or
    (status, headers, body); a body of several parts is sent with a pause after each."""

    def __init__(self, play):
        self.play, self.requests = play, []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                said = stub.play(body["messages"][-1]["content"], len(stub.requests) - 1)
                if isinstance(said, str):
                    said = (200, {}, json.dumps({"choices": [{"message": {"content": said}}]}))
                status, headers, text = said
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in [text] if isinstance(text, str) else text:
                        self.wfile.write(part.encode())
                        if part is not text:
                            time.sleep(0.04)
                except OSError:  # the client gave up first
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextmanager
def serving():
    """Gives a function that starts stubs; all are stopped at the end."""
    stubs = []

    def start(play):
        stubs.append(Stub(play))
        return stubs[-1]

    try:
        yield start
    finally:
        for stub in stubs:
            stub.stop()


def shown(text):
    """The two responses as a judge reads them, between the marks of the prompt."""
    parts = text.split("<response ")
    return tuple(part.split(">\n", 1)[1].split("\n</response", 1)[0] for part in parts[1:3])


def longer_wins(text, n):
    first, second = shown(text)
    return "A" if len(first) > len(second) else "B"
