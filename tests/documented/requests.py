"""Requests of curl to a server of ehm: the address has to be a route, for the method that curl would use."""

from urllib.parse import urlsplit

from documented import FaultyBlockError
from ehm.deploy.serve.routes import dense, images, open_inference, page

_OWN_HOSTS = {"localhost", "127.0.0.1"}
_WITHOUT_ROUTER = {"/metrics", "/docs", "/openapi.json"}
"""Addresses that the application adds itself."""
_BODY_FLAGS = {"-d", "-F", "--data", "--data-binary", "--form", "--json"}


def check_curl(words):
    """Check a command of curl; return False if it asks another server."""
    address = next(word for word in words[1:] if "/" in word and not word.startswith(("-", "@")) and "@" not in word)
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.hostname not in _OWN_HOSTS:
        return False
    method = "POST" if _BODY_FLAGS & set(words) else "GET"
    if "-X" in words:
        method = words[words.index("-X") + 1]
    if not _has_route(url.path, method):
        raise FaultyBlockError(f"{method} {url.path}: ehm serve has no such route")
    return True


def _has_route(path, method):
    if path in _WITHOUT_ROUTER:
        return method == "GET"
    for module in (page, images, dense, open_inference):
        for route in module.router.routes:
            if method in route.methods and route.path_regex.match(path):
                return True
    return False
