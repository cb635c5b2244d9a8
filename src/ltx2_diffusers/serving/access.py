"""Who may ask, and how much at once: keys, web sites and sizes, before a request is read."""

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .page.route import PATH
from .settings import MIB, Settings

# What anybody may see.
_OPEN = ("/health", "/")


class Access:
    """Refuses requests without a key, from web sites that are not allowed, and with too large a body.

    Args:
        app: What answers the others.
        settings: The server.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._origins = settings.origins
        # Digests are of one length, so that comparing them takes one time.
        self._keys = [_digest(key) for key in settings.api_keys]
        self._max_body = int(settings.limits.max_body_mb * MIB)
        self._too_large = f"the request is larger than the {settings.limits.max_body_mb:g} MiB that this server takes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["tenant"] = tenant = self._tenant(headers)
        declared = headers.get("content-length", "0")
        if not self._same_site(headers):
            await _refused(403, "requests from other web sites are not taken; see --allow-origin")(
                scope, receive, send
            )
        elif tenant is None and not _is_open(scope["path"]) and scope["method"] != "OPTIONS":
            answer = _refused(401, "an API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
            answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
        elif not (declared.isascii() and declared.isdigit()) or int(declared) > self._max_body:
            await _refused(413, self._too_large)(scope, receive, send)
        else:
            await self._bounded(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless more is sent than the header promised."""
        held = 0

        async def bounded_receive() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > self._max_body:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, bounded_receive, send)

    def _tenant(self, headers: Headers) -> str | None:
        """Whose request it is: a name that follows from the key, `None` without a right one, "" where none is needed."""
        if not self._keys:
            return ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip())
        # All are compared, so that the time does not tell which one is near.
        known = [hmac.compare_digest(digest, key) for key in self._keys]
        return digest[:32] if kind.lower() == "bearer" and any(known) else None

    def _same_site(self, headers: Headers) -> bool:
        """A browser says which site a request comes from; other programs say nothing."""
        origin = headers.get("origin")
        return origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host")


def read_keys(lines: Sequence[str]) -> tuple[str, ...]:
    """Keys of a file, one a line, without empty lines and comments.

    Raises:
        ValueError: If there are none, or one is too short to be safe.
    """
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ValueError("--api-keys names a file without keys; write one a line")
    if any(len(key) < 16 for key in keys):
        raise ValueError("a key of --api-keys has fewer than 16 characters; make one with `openssl rand -hex 32`")
    return keys


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(PATH)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)
