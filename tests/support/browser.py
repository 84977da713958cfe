"""A real browser without a window, spoken to over a pipe in the DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell")


def find():
    """Path of an installed browser of the Chromium family; GRAFTKIT_BROWSER names another. None where there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("GRAFTKIT_BROWSER"), *NAMES)))), None)


class Browser:
    """One page of one browser. ``errors`` collects uncaught exceptions, console errors and refused resources."""

    def __init__(self, process, send, receive):
        self._process, self._send, self._receive = process, send, receive
        self._count, self._session, self._held, self._events = 0, None, b"", []
        self.errors, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self):
        while b"\0" not in self._held:
            piece = os.read(self._receive, 1 << 20)
            assert piece, "the browser went away"
            self._held += piece
        raw, _, self._held = self._held.partition(b"\0")
        message = json.loads(raw)
        self._note(message.get("method"), message.get("params"))
        return message

    def _note(self, method, found):
        if method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.errors.append(str([item.get("value", item.get("description")) for item in found["args"]]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method:
            self._events.append(method)

    def open(self, path, *, width=1100, height=900, dark=False):
        """Load a file in a window of that size and theme, and wait until it is loaded."""
        self.errors.clear()
        self.requests.clear()
        self._events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=f"file://{path}")
        while "Page.loadEventFired" not in self._events:
            self._next()

    def run(self, expression):
        """The value of a JavaScript expression, as JSON gives it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path):
        """The whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser():
    """Start the browser, and end it whatever happens."""
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()

    options = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars",
               "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
               "--disable-component-update", "--no-default-browser-check", "--font-render-hinting=none"]  # fmt: skip
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        place = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'  # the descriptors that the protocol has to be spoken on
        process = subprocess.Popen(
            ["bash", "-c", place, "bash", find(), *options, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser), env={**os.environ, "HOME": profile},
        )  # fmt: skip
        try:
            os.close(to_browser)
            os.close(from_browser)
            yield Browser(process, send, receive)
        finally:
            process.kill()
            process.wait()
            os.close(send)
            os.close(receive)
