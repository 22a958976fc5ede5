"""Checks of the trackers before a run: their libraries, their keys, and a real connection."""

import base64
import json
import os
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from meow_ray.config import Tracking
from meow_ray.core import storage

TIMEOUT = 5
"""Seconds that a tracker's server has to answer."""
WANDB = "https://api.wandb.ai"
WITHOUT_SERVER = ("offline", "dryrun", "disabled")
"""The values of WANDB_MODE with which no server is used."""
REFUSED = (401, 403)
"""HTTP statuses with which a server refuses a key."""


def tracker_faults(config: Tracking, root: str) -> Iterator[str]:
    """Yields why a configured tracker cannot be used, a paragraph each.

    Args:
        config: the trackers.
        root: URI of the storage root, in which TensorBoard's files are written.
    """
    if config.tensorboard and storage.is_local(root):
        yield from _folder_faults("tracking.tensorboard", Path(root, "tensorboard"))
    for name, faults in (("mlflow", _mlflow_faults), ("wandb", _wandb_faults)):
        value = getattr(config, name)
        if not value:
            continue
        if find_spec(name) is None:
            yield (
                f"`tracking.{name}` is set, but the package {name} is not installed. "
                f"Run: pip install {name}."
            )
        else:
            yield from faults(value)


def _folder_faults(key: str, folder: Path) -> Iterator[str]:
    """Yields that a folder cannot be written, or not be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield f"`{key}`: {folder} cannot be written. Change its permissions, or unset the key."


def _mlflow_faults(uri: str) -> Iterator[str]:
    if ":" not in uri or uri.startswith("file:"):
        folder = storage.absolute(uri.removeprefix("file:").removeprefix("//"))
        yield from _folder_faults("tracking.mlflow", Path(folder))
        return
    if not uri.startswith(("http://", "https://")):
        return
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=meow_ray"
    headers = {}
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"
    elif os.environ.get("MLFLOW_TRACKING_USERNAME"):
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        headers["Authorization"] = _basic(os.environ["MLFLOW_TRACKING_USERNAME"], password)
    try:
        _answer(Request(url, headers=headers))  # noqa: S310 - http(s) by the test above
    except HTTPError as error:
        if error.code in REFUSED:
            yield (
                f"`tracking.mlflow`: {uri} refuses the user (HTTP {error.code}). Set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        # any other answer, such as that it has no such experiment yet, is one
    except (URLError, OSError, HTTPException) as error:
        yield (
            f"`tracking.mlflow`: {uri} does not answer within {TIMEOUT} s ({_reason(error)}). "
            "Start the server, correct the address, or set tracking.mlflow=null."
        )


def _wandb_faults(project: str) -> Iterator[str]:
    is_disabled = os.environ.get("WANDB_DISABLED", "").lower() == "true"
    if is_disabled or os.environ.get("WANDB_MODE", "").lower() in WITHOUT_SERVER:
        return
    url = os.environ.get("WANDB_BASE_URL", WANDB).rstrip("/")
    key = os.environ.get("WANDB_API_KEY") or _key_of_netrc(urlsplit(url).hostname or "")
    if not key:
        yield (
            "`tracking.wandb`: there is no API key. Set WANDB_API_KEY where training runs, run "
            "wandb login, or set WANDB_MODE=offline."
        )
        return
    request = Request(  # noqa: S310 - wandb's own address
        f"{url}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        headers={"Content-Type": "application/json", "Authorization": _basic("api", key)},
    )
    try:
        reply = _answer(request)
    except HTTPError as error:
        if error.code in REFUSED:
            yield _refused_key(url)
    except (URLError, OSError, HTTPException, ValueError) as error:
        yield (
            f"`tracking.wandb`: {url} does not answer within {TIMEOUT} s ({_reason(error)}). "
            "Check the network, set WANDB_MODE=offline, or set tracking.wandb=null."
        )
    else:
        if (
            isinstance(reply, dict)
            and (reply.get("data") or {"viewer": True}).get("viewer") is None
        ):
            yield _refused_key(url)


def _refused_key(url: str) -> str:
    return f"`tracking.wandb`: {url} refuses the API key. Set WANDB_API_KEY to a valid one."


def _key_of_netrc(host: str) -> str | None:
    """Returns the password for a host in the user's netrc file, as wandb reads it."""
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            entry = netrc(str(Path(name).expanduser())).authenticators(host)
        except (OSError, NetrcParseError):
            continue
        if entry is not None:
            return entry[2]
    return None


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _answer(request: Request) -> Any:
    """Returns the JSON that a server answers within `TIMEOUT`; None if it is something else."""
    with urlopen(request, timeout=TIMEOUT) as reply:  # noqa: S310 - http(s) by its callers
        content = reply.read()
    try:
        return json.loads(content)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
