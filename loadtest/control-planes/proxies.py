"""The proxies under test, and what they say of themselves."""

import http.client
import json
import socket
import ssl
import subprocess
import time

LIMIT = 30


def free_ports(count):
    """Ports in a row that nothing listens on, below the range that the kernel hands out."""
    found = []
    start = 20000 + (time.monotonic_ns() // 1000) % 9000
    for port in range(start, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found = []
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SystemExit("no free ports between 20000 and 32000")


def eventually(what, look):
    """Looks again and again until there is a result."""
    deadline = time.monotonic() + LIMIT
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {LIMIT} s")
        time.sleep(0.05)


def get(port, path, tls=False):
    """One GET on a connection of its own: status, headers, body; `None` if it failed. With TLS whoever answers is believed."""
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"host": "test"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Proxy:
    """A running proxy, for whoever starts it to end."""

    def __init__(self, name, program, bootstrap, admin_port, directory, serial=0):
        self.name, self.admin = name, admin_port
        config = directory / f"{name}-{serial}.json"
        config.write_text(bootstrap)
        self.log = directory / f"{name}-{serial}.log"
        flags = ["--base-id", str(serial % 30000 + 7), "--disable-hot-restart"] if name == "envoy" else []
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program, "-c", str(config), "--concurrency", "1", "--log-level", "warning", *flags],
                stdout=log,
                stderr=log,
            )

    def dump(self):
        """Dynamic resources in force: type -> name -> version."""
        answer = get(self.admin, "/config_dump?include_eds")
        if not answer:
            return {}
        found = {}
        for section in json.loads(answer[2]).get("configs", []):
            kind = section["@type"].rsplit(".", 1)[-1].removesuffix("ConfigDump").lower()
            entries = found.setdefault(kind, {})
            for one in section.get("dynamic_active_clusters", []):
                entries[one["cluster"]["name"]] = one.get("version_info", "")
            for one in section.get("dynamic_listeners", []):
                if "active_state" in one:
                    entries[one["name"]] = one["active_state"].get("version_info", "")
            for one in section.get("dynamic_route_configs", []):
                entries[one["route_config"]["name"]] = one.get("version_info", "")
            for one in section.get("dynamic_active_secrets", []):
                entries[one["name"]] = one.get("version_info", "")
            for one in section.get("dynamic_endpoint_configs", []):
                entries[one["endpoint_config"]["cluster_name"]] = one.get("version_info", "")
        found.pop("bootstrap", None)
        return {kind: names for kind, names in found.items() if names}

    def rejected(self):
        """Updates that were refused."""
        answer = get(self.admin, "/stats?filter=update_rejected")
        lines = (line.rsplit(": ", 1) for line in (answer[2] if answer else "").splitlines() if ": " in line)
        return sum(int(value) for _, value in lines)


def differences(ours, theirs, versions=True):
    """What two dumps disagree about, as lines."""
    found = []
    for kind in sorted(set(ours) | set(theirs)):
        a, b = ours.get(kind, {}), theirs.get(kind, {})
        for name in sorted(set(a) | set(b)):
            if (name in a) != (name in b):
                found.append(f"{kind} {name}: only in {'shika' if name in a else 'envoy'}")
            elif versions and a[name] != b[name]:
                found.append(f"{kind} {name}: version {a[name]!r} in shika, {b[name]!r} in envoy")
    return found
