"""Requests to an OpenAI-compatible server: what to retry, and when to give up."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

PAUSES = (0.5, 1.0)  # seconds before the second and the third try
RETRIED = (408, 429)  # and 500 to 599: the server's state, not the request's fault
SHOWN = 300  # characters of an answer that go into a message


class EndpointError(RuntimeError):
    """The server did not answer, or not with what was asked for; the message has its words."""


class UnavailableError(EndpointError):
    """May be over at the next try."""


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Hands over every answer, whatever its status. Follows no redirects: they would carry the key elsewhere."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


_opener = urllib.request.build_opener(_AsItIs)


def post_json(
    url: str, body: Mapping[str, Any], *, headers: Mapping[str, str], call_timeout: float, until: float
) -> Any:
    """The JSON that a server answers with.

    Args:
        url: where to.
        body: sent as JSON.
        headers: besides the content's type.
        call_timeout: seconds that one try may take.
        until: time by time.monotonic() at which no try may still run.

    Raises:
        EndpointError: refused, or after three tries no connection, no answer in time, or one of the statuses 408, 429
            and 5xx; or the answer is no JSON.
    """
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json", **headers}
    )
    for pause in PAUSES:
        try:
            return _once(request, call_timeout, until)
        except UnavailableError:
            if time.monotonic() + pause >= until:
                raise
            time.sleep(pause)
    return _once(request, call_timeout, until)


def _once(request: urllib.request.Request, call_timeout: float, until: float) -> Any:
    url, now = request.full_url, time.monotonic()
    left = min(call_timeout, until - now)
    if left <= 0:
        raise UnavailableError(
            f"no time was left to ask {url}; raise the deadline, or ask for more at once (concurrency)"
        )
    try:
        with _opener.open(request, timeout=left) as response:
            answer = _read(response, now + left)
    except (OSError, http.client.HTTPException) as error:
        late = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        what = f"no whole answer within {left:.3g} seconds" if late else f"{type(error).__name__}: {error}"
        raise UnavailableError(f"{url} gave {what}; is the server up, and is this its address?") from error
    if not 200 <= response.status < 300:
        kind = UnavailableError if response.status in RETRIED or response.status >= 500 else EndpointError
        raise kind(f"{url} answered with status {response.status} {response.reason}: {_shown(answer)}")
    try:
        return json.loads(answer)
    except ValueError as error:
        raise EndpointError(f"{url} answered with what is no JSON: {_shown(answer)}") from error


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > until:  # a server may keep the line alive with single bytes
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _shown(answer: bytes) -> str:
    return answer[:SHOWN].decode(errors="replace")
