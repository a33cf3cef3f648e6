"""Shika and Envoy under the same control plane on go-control-plane, one after the other: each way of being subscribed, with and without TLS by SDS."""

import subprocess

import upstreams
from bootstrap import MODES, bootstrap
from proxies import Proxy, differences, eventually, free_ports, get

LISTENERS = 5
CLUSTERS = 4
UPDATES = 3
REQUESTS = 5


class Session:
    """One proxy under one control plane."""

    def __init__(self, name, program, server, mode, tls, ports, behind, directory, serial):
        self.port, self.gateway, admin, self.base, *_ = ports
        self.tls, self.behind = tls, {str(port) for port in behind}
        self.requests = self.failed = 0
        options = {
            "xds": mode,
            "port": self.port,
            "gateway": self.gateway,
            "base": self.base,
            "upstreams": ",".join(map(str, behind)),
            "tls": "true" if tls else "false",
        }
        with open(directory / f"server-{serial}.log", "wb") as log:
            self.server = subprocess.Popen(
                [server, *(f"-{key}={value}" for key, value in options.items())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.version = self.next()
        text = bootstrap(mode, "test-id", self.gateway if mode == "rest" else self.port, admin, refresh="0.2s")
        self.proxy = Proxy(name, program, text, admin, directory, serial)

    def next(self):
        """Makes the control plane serve its next snapshot; the version."""
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()

    def ask(self, listener):
        answer = get(self.base + listener, "/", tls=self.tls)
        return bool(answer) and answer[0] == 200 and answer[2] in self.behind

    def settled(self):
        """Whether all of the snapshot is in force: its clusters alone, its routes, every listener."""
        dump = self.proxy.dump()
        clusters = {f"cluster-{self.version}-{at}" for at in range(CLUSTERS)}
        routes = [name for name in dump.get("routes", {}) if name.startswith(f"route-{self.version}-")]
        listening = (get(self.proxy.admin, "/listeners") or (0, {}, ""))[2].count("::")
        return (
            set(dump.get("clusters", {})) == clusters
            and set(dump.get("endpoints", {})) == clusters
            and len(routes) == LISTENERS - 2
            and listening >= LISTENERS
            and all(self.ask(listener) for listener in range(LISTENERS))
        )

    def steady(self):
        """Requests to every listener; those that fail are counted."""
        for _ in range(REQUESTS):
            for listener in range(LISTENERS):
                self.requests += 1
                self.failed += not self.ask(listener)

    def dump(self):
        """What is in force. Envoy keeps the routes of listeners that still drain: those of the snapshot count."""
        dump = self.proxy.dump()
        routes = dump.get("routes", {})
        dump["routes"] = {name: version for name, version in routes.items() if f"-{self.version}-" in name}
        # Envoy tells no version of endpoints, and a listener that it changes in place keeps the version that it began with.
        for kind in ("endpoints", "listeners"):
            dump[kind] = dict.fromkeys(dump.get(kind, {}), "")
        return dump

    def end(self):
        for process in (self.proxy.process, self.server):
            process.kill()
            process.wait()


def run(shika, envoy, server, directory):
    """All ways, with and without TLS; the number of failures."""
    failures = serial = 0
    behind = upstreams.start(3)
    for mode in MODES:
        for tls in (False, True):
            what = f"go-control-plane, {mode}{' with TLS' if tls else ''}"
            ports = free_ports(3 + LISTENERS)
            dumps = {"shika": [], "envoy": []}
            for name, program in (("envoy", envoy), ("shika", shika)):
                serial += 1
                session = Session(name, program, server, mode, tls, ports, behind, directory, serial)
                try:
                    for update in range(UPDATES + 1):
                        if update:
                            session.version = session.next()
                        eventually(f"{what}: {name}: snapshot {session.version}", session.settled)
                        session.steady()
                        dumps[name].append(session.dump())
                    refused = session.proxy.rejected()
                finally:
                    session.end()
                print(
                    f"{what}: {name}: {UPDATES + 1} snapshots in force, {session.requests} requests, "
                    f"{session.failed} failed, {refused} updates refused",
                    flush=True,
                )
                failures += session.failed + refused
            for ours, theirs in zip(dumps["shika"], dumps["envoy"]):
                for line in differences(ours, theirs):
                    print(f"  {line}")
                    failures += 1
    return failures
