"""Who may call what: tokens with scopes, or nobody but this machine."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from secrets import token_bytes, token_urlsafe
from typing import TYPE_CHECKING, get_args

from teguh._types import Access
from teguh.errors import ConfigurationError
from teguh.server._errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from starlette.requests import Request

SCOPES: tuple[Access, ...] = get_args(Access)
MIN_LENGTH = 16

COOKIE = "teguh_session"
SESSION_SECONDS = 12 * 3600


@dataclass(frozen=True, slots=True)
class Token:
    """A secret of at least 16 characters, and the scopes of whoever knows it."""

    secret: str = field(repr=False)
    scopes: frozenset[str]

    def __post_init__(self) -> None:
        unknown = sorted(self.scopes - set(SCOPES))
        if unknown or not self.scopes:
            what = f"no scope {unknown[0]!r}" if unknown else "no token without a scope"
            raise ConfigurationError(f"there is {what}: scopes are {', '.join(SCOPES)}")
        if len(self.secret) < MIN_LENGTH or not self.secret.isascii() or " " in self.secret:
            raise ConfigurationError(
                f"a token has at least {MIN_LENGTH} characters, all ASCII and no spaces"
            )


def read_tokens(lines: Iterable[str]) -> list[Token]:
    """Read tokens, each a line like ``client,worker=SECRET``; # begins a comment."""
    tokens = []
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            scopes, equals, secret = line.partition("=")
            if not equals:
                raise ConfigurationError("a token is written like client,worker=SECRET")
            names = frozenset(name.strip() for name in scopes.split(","))
            tokens.append(Token(secret.strip(), names))
    return tokens


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for a page. Each form of theirs has to hold the `seal`."""

    scopes: frozenset[str]
    seal: str
    signed_in: bool


class Gatekeeper:
    """Lets requests in whose token has a scope they need.

    Without tokens it lets in what this machine itself sends to a loopback address; no web page,
    though, that a browser on this machine has open.
    """

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._known = [(_digest(token.secret), token.scopes) for token in tokens]
        self._key = token_bytes()

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens, with which one can sign in."""
        return bool(self._known)

    def sign_in(self, secret: str) -> str | None:
        """Return the cookie for whoever knows a token, None if that is no token.

        It is made of the token and cannot be turned back into it; no other process needs to know.
        """
        digest = _digest(secret.strip())
        known = [key for key, _ in self._known if hmac.compare_digest(key, digest)]
        if not known:
            return None
        session = f"{int(time.time()) + SESSION_SECONDS}.{token_urlsafe(16)}"
        return f"{session}.{_sealed(known[0], 'session', session)}"

    def visitor(self, request: Request) -> Visitor:
        """Return who asks for a page; raise if nobody is signed in who needs to be."""
        if not self._known:
            _check_local(request)
            return Visitor(frozenset(SCOPES), _sealed(self._key, "form", ""), signed_in=False)
        cookie = request.cookies.get(COOKIE, "")
        session, _, seal = cookie.rpartition(".")
        ends = session.partition(".")[0]
        for key, scopes in self._known:
            fits = is_seal(_sealed(key, "session", session), seal)
            if fits and int(ends) > time.time():
                return Visitor(scopes, _sealed(key, "form", session), signed_in=True)
        raise Problem("nobody is signed in", "28000", hint="Sign in with a token.")

    def check(self, request: Request, scopes: Collection[str]) -> None:
        """Raise unless the request may do what takes one of these scopes."""
        if not self._known:
            _check_local(request)
            return
        held = self._scopes_of(request)
        if held is None:
            raise Problem(
                "there is no such token", "28000", hint="Send the header Authorization: Bearer …"
            )
        if not held & set(scopes):
            raise Problem(
                "the token does not allow this",
                "42501",
                f"It has: {', '.join(sorted(held))}.",
                f"This takes one of: {', '.join(sorted(scopes))}.",
            )

    def _scopes_of(self, request: Request) -> frozenset[str] | None:
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        digest = _digest(secret.strip())
        found = None
        for known, scopes in self._known:  # all of them, whichever it is: it takes the same time
            if hmac.compare_digest(known, digest):
                found = scopes
        return found


def _sealed(key: bytes, what: str, text: str) -> str:
    return hmac.new(key, f"{what} {text}".encode("utf-8", "surrogateescape"), sha256).hexdigest()


def is_seal(seal: str, given: str) -> bool:
    """Tell whether a seal is what it has to be, in a time that says nothing of it."""
    return hmac.compare_digest(seal.encode(), given.encode("utf-8", "surrogateescape"))


def check_same_origin(request: Request) -> None:
    """Raise unless a page of this service sent a form, as far as the browser tells."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "")
    own = origin.partition("://")[2] == request.headers.get("host", "")
    if (site != "same-origin") if site else not own:
        raise Problem(
            "the form comes from another site",
            "42501",
            hint="Send it from a page of this service. A proxy has to pass the header Host on.",
        )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, as seen from itself only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_local(request: Request) -> None:
    """Raise unless a request comes from this machine, and from no page of another site."""
    sender = request.client.host if request.client else ""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if (
        not is_loopback(sender)
        or not is_loopback(_without_port(host))
        or (origin is not None and origin.partition("://")[2] != host)
    ):
        raise Problem(
            "a token is needed",
            "28000",
            "Without tokens, only this machine is served, at a loopback address.",
            "Start the service with tokens.",
        )


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
