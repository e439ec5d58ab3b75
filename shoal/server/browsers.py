"""Requests that another site's page makes a browser send, which a service without keys must not take.

A page may send forms, and so multipart bodies, anywhere without asking; and a name of its own may lead to
this machine (rebinding). Browsers say of both where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers

from shoal.server.errors import Failure

LOCAL_HOST = re.compile(
    r"(localhost|127\.0\.0\.1|\[::1\]|testserver)(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE
)
OWN_SITE = frozenset({"same-origin", "none"})  # none: typed by a person


def check_browser(headers: Headers, *, reads_page: bool, origins: Collection[str] = ()) -> None:
    """See that a request is for this machine, and from no other site's page.

    Args:
        headers: of the request.
        reads_page: a page that changes nothing is read, to which another site's may lead.
        origins: others whose pages may ask.

    Raises:
        Failure: 403: it is for another host, or from another site.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not LOCAL_HOST.fullmatch(hosts[0]):
        raise Failure(403, "without keys only this machine is answered; use localhost", code="host")
    sent = headers.getlist("origin")
    own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
    if any(origin.lower() not in own and not {origin, "*"} & set(origins) for origin in sent):
        raise _cross_site()
    site = headers.get("sec-fetch-site", "none").lower()
    if site not in OWN_SITE and not sent and not reads_page:
        raise _cross_site()


def refuse_preflight() -> Failure:
    """The answer to a browser that asks whether a page may, where no origin is allowed."""
    return Failure(
        403,
        "pages of other origins may not ask this service; allow some with allowed_origins "
        "(shoal serve --allowed-origins)",
        code="cross_site",
    )


def _cross_site() -> Failure:
    return Failure(
        403, "without keys no other site's page is answered; ask from this machine itself", code="cross_site"
    )
