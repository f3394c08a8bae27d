"""Settings → who may ask the HTTP service, and how: certificates, the identity provider's tokens, remembered API keys.

Rules: settings that contradict each other stop the start with one line; no credential is logged.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from consumers import config, paths
from consumers.errors import WrongUse
from consumers.http.auth import Authenticator, Certificates, KeyRing, TokenRules, Tokens
from consumers.http.keymemory import MemoryFile
from consumers.http.server import Tls, is_loopback
from consumers.secrets import Secrets


def tls_of(settings: config.Settings) -> Tls | None:
    """Files of the server's certificate; None without TLS. Raises WrongUse, Refused."""
    http = settings.http
    if bool(http.tls_certfile) != bool(http.tls_keyfile):
        raise WrongUse("http.tls_certfile and http.tls_keyfile go together")
    if (http.tls_client_ca or http.certificate_roles) and not http.tls_certfile:
        raise WrongUse("http.tls_client_ca and http.certificate_roles need http.tls_certfile")
    for name in ("tls_certfile", "tls_keyfile", "tls_client_ca"):
        if file := getattr(http, name):
            paths.check_regular(file, f"http.{name}")
    return Tls(http.tls_certfile, http.tls_keyfile, http.tls_client_ca or None) if http.tls_certfile else None


def grpc_tls_of(settings: config.Settings) -> tuple[str, str, str] | None:
    """Files of the gRPC service's certificate, its key, and the authorities of clients (empty: no client certificates are asked for).

    None without TLS. Raises WrongUse where keys would travel in clear.
    """
    g = settings.gateway
    if g.grpc_client_ca and not g.grpc_certfile:
        raise WrongUse("gateway.grpc_client_ca needs gateway.grpc_certfile")
    if bool(g.grpc_certfile) != bool(g.grpc_keyfile):
        raise WrongUse("gateway.grpc_certfile and gateway.grpc_keyfile go together")
    if g.grpc_bind and not is_loopback(g.grpc_bind) and not g.grpc_certfile and not g.grpc_plaintext:
        raise WrongUse(
            f"gateway.grpc_bind {g.grpc_bind} is not loopback and there is no TLS: set gateway.grpc_certfile and "
            "gateway.grpc_keyfile, or gateway.grpc_plaintext = true if gateways' keys may cross the network in clear text"
        )
    return (g.grpc_certfile, g.grpc_keyfile, g.grpc_client_ca) if g.grpc_certfile else None


def tokens_of(settings: config.Settings) -> Tokens | None:
    """What checks the identity provider's tokens; None without a provider. Raises WrongUse."""
    http = settings.http
    if not http.oidc_issuer:
        return None
    if not http.oidc_jwks:
        raise WrongUse("http.oidc_issuer needs http.oidc_jwks, the public keys of the issuer")
    return Tokens(
        TokenRules(
            issuer=http.oidc_issuer,
            audience=http.oidc_audience,
            role_claim=http.oidc_role_claim,
            roles=dict(http.oidc_roles),
            tenant_claim=http.oidc_tenant_claim,
            tenant=settings.tenant,
            longest_s=http.oidc_longest_s,
            algorithms=http.oidc_algorithms,
        )
    )


def authenticator(settings: config.Settings, keys: KeyRing, tokens: Tokens | None) -> Authenticator:
    """What tells who a caller is: keys, tokens, client certificates."""
    http = settings.http
    certificates = Certificates(dict(http.certificate_roles), settings.tenant) if http.certificate_roles else None
    return Authenticator(keys, tokens, certificates, settings.tenant, http.open_on_loopback and is_loopback(http.bind))


def memory_of(settings: config.Settings, secrets: Secrets) -> MemoryFile:
    """Where the keys of this store are remembered: another store has other keys."""
    parts = urlsplit(settings.store_url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    digest = hashlib.blake2b(f"{secrets.key_id} {where}".encode(), digest_size=6).hexdigest()
    return MemoryFile(settings.state_path / f"keys-{digest}.json", secrets)
