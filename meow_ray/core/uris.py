"""URIs as text: a local path, `file://`, or the URI of an object store such as `s3://`."""

import re
from pathlib import Path


def is_local(uri: str) -> bool:
    """Tells whether a URI is a path on this machine, mounted filesystems included."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """Returns the URI without a trailing slash; a local path is made absolute and `~` expanded."""
    if not is_local(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """Returns a URI with path components appended; the query of a URI stays at its end."""
    base, mark, query = (uri, "", "") if is_local(uri) else uri.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def display(uri: str) -> str:
    """Returns the URI for people: without its query and user name, which may hold credentials."""
    return re.sub(r"://[^/@]*@", "://", uri.partition("?")[0])
