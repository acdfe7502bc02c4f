"""Who may change what is served: whoever knows the admin token."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.routers.problems import AccessError

_bearer = HTTPBearer(auto_error=False, description="The token that `RECS_ADMIN_TOKEN` holds.")


async def require_admin(
    request: Request, _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    """Let nobody through but who sends the token; a missing one and a wrong one are told the same.

    Digests of one length are compared, in constant time: neither the token's length nor its first characters show.

    Raises
    ------
    AccessError
        401 without the token; 403 where none is configured, so that nobody can have it.
    """
    token: SecretStr | None = request.app.state.admin_token
    if not token:
        raise AccessError("admin-disabled")
    # Not FastAPI's credentials: it strips what is a space in Latin-1, and may be the last byte of an "à" in UTF-8.
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = ""
    # Headers arrive as Latin-1, whatever the sender meant by their bytes.
    if not hmac.compare_digest(_digest(given.strip(" ").encode("latin-1")), _digest(token.get_secret_value().encode())):
        raise AccessError("unauthorized")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
