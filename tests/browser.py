"""A headless Chromium that tests drive, over the pipe of its debugging protocol."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# of the names that the distributions give it, the first that is installed
EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
PATIENCE = 60  # seconds; a busy machine takes some to start it
# the browser reads commands from 3 and answers on 4
_LAUNCH = 'exec "$@" 3<&{commands} 4>&{answers}'


class Browser:
    """One page at a time; `complaints` are the errors and policy violations that its console would show."""

    def __init__(self, profile: Path) -> None:
        assert EXECUTABLE, "no chromium and no google-chrome"
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        launch = _LAUNCH.format(commands=commands, answers=answers)
        self._process = subprocess.Popen(
            ["bash", "-c", launch, "bash", EXECUTABLE, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._rest, self._session = 0, b"", ""
        self._loaded: set[str] = set()
        self.complaints: list[str] = []
        pages = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._call("Page.setLifecycleEventsEnabled", enabled=True)

    def open(self, page: Path, state: str = "") -> None:
        """Load a file, with what stands behind the # of its address."""
        for url in ("about:blank", page.resolve().as_uri() + (f"#{state}" if state else "")):  # another # loads nothing
            self.complaints.clear()
            loader = self._call("Page.navigate", url=url)["loaderId"]
            while loader not in self._loaded:
                self._note(self._receive())

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def close(self) -> None:
        self._call("Browser.close")
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], PATIENCE)[0], f"no answer from the browser in {PATIENCE} s"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Mapping[str, Any]) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Page.lifecycleEvent" if about["name"] == "load":
                self._loaded.add(about["loaderId"])
            case "Log.entryAdded" if about["entry"]["level"] in ("warning", "error"):
                self.complaints.append(about["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(about["args"]))
