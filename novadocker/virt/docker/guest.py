# SPDX-License-Identifier: Apache-2.0
"""What is put into a container; pure."""

from collections.abc import Iterable, Sequence

_LOCAL_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
# glibc reads no more (resolv.conf(5), MAXNS)
_MAX_NAMESERVERS = 3


def etc_files(
    hostname: str, domain: str, addresses: Sequence[str], nameservers: Iterable[str]
) -> dict[str, bytes]:
    """Return hostname, hosts and resolv.conf of a server, for its /etc.

    :param domain: appended to a host name without one; may be empty
    :param addresses: the server's own, without prefix length; names resolve to each
    :param nameservers: in order of preference; none leaves the image's resolv.conf alone
    """
    short, _, rest = hostname.partition(".")
    domain = rest or domain
    names = f"{short}.{domain} {short}" if domain else short
    own = addresses or ("127.0.1.1",)
    files = {
        "hostname": f"{hostname}\n",
        "hosts": _LOCAL_HOSTS + "".join(f"{address}\t{names}\n" for address in own),
    }
    servers = list(nameservers)[:_MAX_NAMESERVERS]
    if servers:
        search = f"search {domain}\n" if domain else ""
        files["resolv.conf"] = search + "".join(f"nameserver {ip}\n" for ip in servers)
    return {name: text.encode() for name, text in files.items()}
