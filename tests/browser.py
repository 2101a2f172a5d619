"""Headless Chromium by its debugging pipe: no driver, no port, no package."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from select import select

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--remote-debugging-pipe",
]  # fmt: skip
# Chromium listens on descriptor 3 and speaks on 4; they are taken from above both first
PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for at, end in zip((3, 4), ends): os.dup2(end, at)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {"Escape": 27, "Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
        "ArrowDown": 40}  # fmt: skip


class Tab:
    """One page: what it is told, and what it says."""

    def __init__(self, write, read):
        self.write, self.read, self.count = write, read, itertools.count(1)
        self.rest, self.session, self.events = b"", None, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        number = next(self.count)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data) :]
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def receive(self, patience=60):
        while b"\0" not in self.rest:
            ready, _, _ = select([self.read], [], [], patience)
            assert ready, "the browser says nothing"
            part = os.read(self.read, 1 << 20)
            assert part, "the browser is gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, address):
        """Load a page anew, the same one too."""
        for url, there in (("about:blank", "==="), (address, "!==")):
            self.send("Page.navigate", url=url)
            self.until(f"location.protocol {there} 'about:' && document.readyState === 'complete'")

    def run(self, script):
        """The value of a script, plain data."""
        asked = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        done = self.send("Runtime.evaluate", expression=script, **asked)
        assert "exceptionDetails" not in done, (script, done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, script, patience=30):
        end = time.monotonic() + patience
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return value

    def key(self, name, times=1):
        for _ in range(times):
            rest = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
            if name == "Enter":
                rest["text"] = "\r"
            self.send("Input.dispatchKeyEvent", type="keyDown", **rest)
            self.send("Input.dispatchKeyEvent", type="keyUp", **rest)
            # an address that a key sets is acted on a little later
            self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")

    def size(self, wide, high=900):
        sizes = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **sizes)

    def dark(self, on=True):
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def faults(self):
        """Errors in the console, and requests for anything but the page itself."""
        self.run("1")  # what was on its way has come
        said = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                said.append(params["exceptionDetails"])
            elif method == "Runtime.consoleAPICalled" or (
                method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")
            ):
                said.append(params)
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                own = ("file:", "data:", "blob:") if params["type"] == "Document" else ("data:",)
                if not url.startswith(own):
                    said.append(url)
        return said


@contextmanager
def chromium(profile, *flags):
    """A browser with one tab, ended whatever happens."""
    into, write = os.pipe()
    read, out = os.pipe()
    command = [sys.executable, "-S", "-c", PIPES, str(into), str(out), CHROMIUM, *FLAGS, *flags,
               f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
    process = subprocess.Popen(
        command, pass_fds=(into, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(into)
    os.close(out)
    try:
        yield Tab(write, read)
    finally:
        os.close(write)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read)
