"""Outgoing HTTP, to the receivers of alerts and to nothing else.

An address that somebody else can choose must not open a way into our network.

Rules:
* https only. Plain http is used only for receivers on the allowlist (tests, an Alertmanager on the same machine).
* The host is resolved for each new connection, **every** answer is checked, and the connection goes to the checked address. A later change
  of the name has no effect. TLS still checks the certificate of the name.
* Only global unicast addresses pass: no loopback, private, link-local, metadata, carrier-grade NAT, documentation, multicast or reserved
  address, and no IPv6 form that hides an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo, ISATAP). Receivers inside the network are
  named in the allowlist, by network or by host name.
* Metadata services and link-local addresses are never reached, in whatever form the address comes, even if the allowlist names them.
* No redirects, no proxies from the environment, no credentials in URLs, at most 5 s in total and 64 KB of answer.
* 2xx counts as taken; 408, 425, 429, 3xx and 5xx are `Unavailable`, other 4xx `Undeliverable`. An error names the host and the status,
  never the path, a header or the text of the answer.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from consumers.errors import ConfigError, Unavailable, Undeliverable

DEADLINE_S = 5.0
ANSWER_BYTES = 64 * 1024
IDLE_S = 20.0
AGAIN = {408, 425, 429}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Sequence[str]]

GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
CLOSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "192.0.0.0/24",  # protocol assignments
        "168.63.129.16/32",  # a metadata service on a public address
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20", "2001:db8::/32",  # documentation
    )
)  # fmt: skip
"""Global by the registry, closed here."""
NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(net)
    for net in (
        "169.254.0.0/16", "fe80::/10",  # link-local: metadata of nearly every cloud, and credentials of containers
        "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
        "fd00:ec2::23/128", "fd00:ec2::254/128", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128", "fd00:42::42/128",
    )
)  # fmt: skip
"""Whatever the allowlist says: a cloud's metadata service hands out credentials."""

_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def inside(address: Address) -> set[Address]:
    """The address and every other that it stands for: a gateway on the way may turn one into the other."""
    found: set[Address] = {address}
    if isinstance(address, ipaddress.IPv4Address):
        return found
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in net for net in (*_NAT64, _COMPATIBLE)) or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        found.add(last)
    hidden = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
    return found | {one for one in hidden if one is not None} | _translated(address, last)


def _translated(address: ipaddress.IPv6Address, last: ipaddress.IPv4Address) -> set[Address]:
    """``::ffff:0:a.b.c.d``, of translators without a prefix of their own."""
    return {last} if int(address) >> 32 == 0xFFFF0000 else set()


def is_never(address: Address) -> bool:
    """Whether no allowlist opens it."""
    return any(one in net for one in inside(address) for net in NEVER)


def is_open(address: Address) -> bool:
    """Whether anybody may reach it: global unicast without another address inside."""
    if address.is_multicast or not address.is_global or any(address in net for net in CLOSED) or is_never(address):
        return False
    return address.version == 4 or address in GLOBAL_V6


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """What the allowlist names: networks and host names that may be private and spoken to in plain http."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str) -> AllowedHosts:
        """Networks (``10.1.0.0/16``, ``127.0.0.1``) and host names, separated by spaces. Raises ConfigError."""
        networks: list[Network] = []
        hosts = set()
        for word in text.split():
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError:
                if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?", word):
                    raise ConfigError(f"allowlist: {word!r} is neither a network nor a host name") from None
                hosts.add(word.lower())
        return cls(tuple(networks), frozenset(hosts))

    def has(self, host: str, address: Address) -> bool:
        named = host.lower() in self.hosts or any(address in net for net in self.networks)
        return named and not is_never(address)


class RefusedByStatus(Undeliverable):
    """Refused for good by an answer with this status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Endpoint:
    """One URL, looked at before anything is sent: `scheme`, `host`, `port`, `path` (with the query)."""

    def __init__(self, url: str, what: str) -> None:
        if re.search(r"[\x00-\x20\x7f-\uffff\\]", url):
            raise ConfigError(f"{what}: the URL contains invalid characters")
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{what}: not a URL") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{what}: the URL must be https://host/…")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"{what}: the URL must not contain credentials")
        self.scheme, self.host = parts.scheme, parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Outbound:
    """POST to one target. `context`: TLS settings (tests bring their own authority). `lookup`: the resolver.

    Raises ConfigError for a URL that can't be right.
    """

    def __init__(
        self,
        url: str,
        *,
        what: str,
        allow: AllowedHosts | None = None,
        deadline_s: float = DEADLINE_S,
        context: ssl.SSLContext | None = None,
        lookup: Resolve = resolve,
    ) -> None:
        self.target = Endpoint(url, what)
        self.what = what
        self._allow = allow or AllowedHosts()
        self._deadline_s = deadline_s
        self._context = context or ssl.create_default_context()
        self._lookup = lookup
        self._connection: http.client.HTTPConnection | None = None
        self._used_s = 0.0

    def post(self, body: bytes, headers: Mapping[str, str], path: str | None = None) -> bytes:
        """The answer's body after a 2xx; `path` instead of the target's. Raises Unavailable, Answered."""
        kept = self._connection is not None and time.monotonic() - self._used_s < IDLE_S
        if not kept:
            self.close()
        try:
            try:
                return self._post(body, headers, path or self.target.path)
            except (ConnectionError, http.client.RemoteDisconnected):
                if not kept:
                    raise
                self.close()  # an idle connection that the other side gave up; the same id goes again
                return self._post(body, headers, path or self.target.path)
        except (Unavailable, Undeliverable):
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{self.what}: {self.target.host}: {type(error).__name__}") from None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, body: bytes, headers: Mapping[str, str], path: str) -> bytes:
        end_s = time.monotonic() + self._deadline_s
        connection = self._connection = self._connection or self._connected(end_s)
        # A receiver that drips would never run into the time-out of one read: at the deadline the socket is shut.
        late = threading.Event()
        cut = threading.Timer(max(0.0, end_s - time.monotonic()), _shut, [connection, late])
        cut.daemon = True
        cut.start()
        try:
            connection.request("POST", path, body, {"Host": self.target.authority} | dict(headers))
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES + 1)
            if late.is_set():
                raise TimeoutError
        except BaseException:
            self.close()
            raise
        finally:
            cut.cancel()
        self._used_s = time.monotonic()
        if len(answer) > ANSWER_BYTES or response.will_close or not response.isclosed():
            self.close()
        self._judge(response.status)
        return answer[:ANSWER_BYTES]

    def _judge(self, status: int) -> None:
        if 200 <= status < 300:
            return
        said = f"{self.what}: {self.target.host} answered {status}"
        if 400 <= status < 500 and status not in AGAIN:
            raise RefusedByStatus(said, status)
        raise Unavailable(said)

    def _connected(self, end_s: float) -> http.client.HTTPConnection:
        host, port = self.target.host, self.target.port
        addresses = self._checked(host, port)
        failed: OSError | None = None
        for address in addresses:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                break
            try:
                sock: socket.socket = socket.create_connection((str(address), port), timeout=left_s)
            except OSError as error:
                failed = error
                continue
            sock.settimeout(max(0.05, end_s - time.monotonic()))
            connection = http.client.HTTPConnection(host, port)
            if self.target.scheme == "https":
                cut = threading.Timer(max(0.0, end_s - time.monotonic()), _shut_socket, [sock])
                cut.daemon = True
                cut.start()
                try:
                    sock = self._context.wrap_socket(sock, server_hostname=host)
                except BaseException:
                    sock.close()
                    raise
                finally:
                    cut.cancel()
            sock.settimeout(self._deadline_s)
            connection.sock = sock
            connection.auto_open = 0  # never by itself: it would resolve the name again
            return connection
        raise failed or TimeoutError()

    def _checked(self, host: str, port: int) -> list[Address]:
        found = []
        for text in self._lookup(host, port):
            try:
                address = ipaddress.ip_address(text.partition("%")[0])
            except ValueError as error:
                raise Unavailable(f"{self.what}: {host} has no address that can be checked") from error
            allowed = self._allow.has(host, address)
            if not allowed and not is_open(address):
                raise Unavailable(
                    f"{self.what}: {host} has an address that alerts may not be sent to; see the allowlist"
                )
            if not allowed and self.target.scheme != "https":
                raise Unavailable(f"{self.what}: plain http to {host} is not in the allowlist")
            found.append(address)
        if not found:
            raise Unavailable(f"{self.what}: {host} has no address")
        return found


def _shut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()  # an answer cut short must not pass for a whole one
    if connection.sock is not None:
        _shut_socket(connection.sock)


def _shut_socket(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed meanwhile
