"""Pictures from URLs that strangers wrote: few bytes, little time, public addresses, and no tricks.

Of 270 million URLs in 24 collections more than a fifth were dead ("Link-Rot in Web-Sourced
Multimedia Datasets", MMM 2023, doi:10.1007/978-3-031-27077-2_37). A failure is an error with a
reason, never a blank picture.
"""

from __future__ import annotations

import dataclasses
import http.client
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urljoin

from ..errors import PictureError
from . import robots
from .addresses import PUBLIC, Network
from .connection import Target, get
from .decoding import TOO_LARGE

_REDIRECTS = (301, 302, 303, 307, 308)  # RFC 9110, section 15.4
_READ_BYTES = 64 << 10
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class FetchLimits:
    """What a stranger's server may cost.

    Parameters
    ----------
    n_bytes : int
        Of one picture; strict.
    seconds : float
        For one picture, redirects included. Resolving a name is bounded by the system's resolver.
    seconds_in_all : float
        For all pictures of a query.
    n_redirects : int
    n_threads : int
        Pictures that are fetched at a time.
    """

    n_bytes: int = 16 << 20
    seconds: float = 10.0
    seconds_in_all: float = 60.0
    n_redirects: int = 5
    n_threads: int = 16

    def __post_init__(self) -> None:
        for name in ("n_bytes", "seconds", "seconds_in_all", "n_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0.")
        if self.n_redirects < 0:
            raise ValueError(f"n_redirects is {self.n_redirects}, expected at least 0.")


def fetch(url: str, limits: FetchLimits, *, network: Network = PUBLIC) -> bytes:
    """Return what lies at a URL.

    Every hop is judged anew: its scheme, and the addresses that its host resolves to. The
    connection goes to an address that was judged. Proxies of the environment are not used.

    Parameters
    ----------
    url : str
        Of http or https.
    limits : FetchLimits
    network : Network
        Which addresses may be connected to; by default public ones.

    Raises
    ------
    PictureError
        If it can't be had within the limits, or its owner forbids its use (X-Robots-Tag). The
        ``reason`` is one of a few.
    """
    deadline = time.monotonic() + limits.seconds
    headers = {
        "User-Agent": user_agent(),
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    here = url
    try:
        for _ in range(limits.n_redirects + 1):
            target = Target.parse(here)
            addresses = network.addresses(target.host, target.port)
            with get(target, addresses, deadline=deadline, headers=headers) as response:
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or location is None:
                    _require_usable(response, url)
                    return _read(response, url, limits.n_bytes)
            here = urljoin(here, location)
    except TimeoutError as error:
        raise PictureError(
            OUT_OF_TIME, f"{url} took more than {limits.seconds:.3g} seconds."
        ) from error
    except http.client.IncompleteRead as error:
        raise _truncated(url) from error
    except (http.client.HTTPException, UnicodeError) as error:
        raise PictureError("not HTTP", f"{url} gave no proper answer: {error!r}") from error
    except ssl.SSLError as error:
        raise PictureError("no secure connection", f"{url}: {error}") from error
    except (OSError, ValueError) as error:
        raise PictureError("no connection", f"{url}: {error}") from error
    raise PictureError(
        "too many redirects", f"{url} leads on more than {limits.n_redirects} times, to {here}."
    )


def fetch_all(
    urls: Sequence[str], limits: FetchLimits, *, network: Network = PUBLIC
) -> list[bytes | PictureError]:
    """Return what lies at each URL, or why it can't be had, in the order asked; see `fetch`."""
    if not urls:
        return []
    deadline = time.monotonic() + limits.seconds_in_all

    def fetch_one(url: str) -> bytes | PictureError:
        left = deadline - time.monotonic()
        if left <= 0:
            return PictureError(
                OUT_OF_TIME,
                f"{url} was not asked for: the pictures before it took "
                f"{limits.seconds_in_all:.3g} seconds.",
            )
        try:
            bounded = dataclasses.replace(limits, seconds=min(limits.seconds, left))
            return fetch(url, bounded, network=network)
        except PictureError as error:
            return error

    with ThreadPoolExecutor(min(limits.n_threads, len(urls))) as pool:
        return list(pool.map(fetch_one, urls))


def user_agent() -> str:
    """Return what a server is told: who asks, and for what."""
    try:
        return f"{robots.AGENT}/{version('voxseek')} (image retrieval; heeds X-Robots-Tag)"
    except PackageNotFoundError:  # the sources, not installed
        return f"{robots.AGENT} (image retrieval; heeds X-Robots-Tag)"


def _require_usable(response: http.client.HTTPResponse, url: str) -> None:
    if response.status != 200:
        raise PictureError(
            f"HTTP {response.status}", f"{url} answers {response.status} {response.reason}."
        )
    directive = robots.refusal(response.headers.get_all("X-Robots-Tag") or ())
    if directive is not None:
        raise PictureError(f"X-Robots-Tag {directive}", f"{url} forbids its use: {directive}.")
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise PictureError("encoded", f"{url} is sent as {encoding}, expected as it is.")


def _read(response: http.client.HTTPResponse, url: str, n_bytes: int) -> bytes:
    too_large = PictureError(TOO_LARGE, f"{url} has more than {n_bytes} bytes.")
    if response.length is not None and response.length > n_bytes:
        raise too_large
    content = bytearray()
    while piece := response.read1(_READ_BYTES):
        content += piece
        if len(content) > n_bytes:
            raise too_large
    if response.length:  # what was announced and didn't come
        raise _truncated(url)
    return bytes(content)


def _truncated(url: str) -> PictureError:
    return PictureError("truncated", f"{url} ended before the bytes that it announced.")
