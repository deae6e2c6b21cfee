"""URLs in texts: told from paths, and without what may be secret."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")


def has_scheme(text: str) -> bool:
    """Says whether a text is a URL, such as ``s3://bucket/patches.tar``, and not a path of this machine."""
    return _SCHEME.match(text) is not None


def public_url(url: str) -> str:
    """Takes user, password, query (signatures) and fragment off a URL."""
    scheme, _, rest = url.partition("://")
    place, slash, names = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{names}"


def without_credentials(text: str) -> str:
    """Makes all URLs of a text public ones.

    Examples:
        >>> without_credentials("https://me:word@host/a.tar?X-Amz-Signature=1f: not found")
        'https://host/a.tar not found'
    """
    return _URL.sub(lambda found: public_url(found.group()), text)
