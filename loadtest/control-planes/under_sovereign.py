"""Shika and Envoy polling the same sovereign, side by side, while everything that it serves changes at random."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import upstreams
from bootstrap import assignment, bootstrap, source
from proxies import Proxy, differences, eventually, free_ports, get

TYPES = ("clusters", "endpoints", "listeners", "routes")
MODE = "rest"
REFRESH = "0.2s"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
# Listeners that come and go, and clusters likewise; `stable` is always there.
LISTENERS = ("stable", "one", "two", "three")
CLUSTERS = ("stable", "a", "b", "c", "d")


class State:
    """What the control plane serves: clusters with endpoints, and listeners with a route to each cluster."""

    def __init__(self, chance, number, ports):
        self.number = number
        self.clusters = {"stable": [ports[0]]}
        for name in chance.sample(CLUSTERS[1:], chance.randint(1, len(CLUSTERS) - 1)):
            self.clusters[name] = chance.sample(ports, chance.randint(1, len(ports)))
        self.listeners = {"stable", *chance.sample(LISTENERS[1:], chance.randint(0, len(LISTENERS) - 1))}

    def resources(self, ports):
        """As resources by type; `ports` are those of the listeners."""
        eds = {"eds_config": {**source(MODE, REFRESH), "initial_fetch_timeout": "5s"}}
        clusters = [
            {"name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": eds} for name in self.clusters
        ]
        endpoints = [assignment(name, ports) for name, ports in self.clusters.items()]
        routes = [self.routes(name) for name in sorted(self.listeners)]
        return {
            "clusters": clusters,
            "endpoints": endpoints,
            "listeners": [listener(name, ports[name]) for name in sorted(self.listeners)],
            "routes": routes,
        }

    def routes(self, listener_name):
        to = [{"match": {"prefix": f"/{name}"}, "route": {"cluster": name}} for name in self.clusters]
        update = {"header": {"key": "x-update", "value": str(self.number)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        host = {"name": "all", "domains": ["*"], "routes": to, "response_headers_to_add": [update]}
        return {"name": f"routes-{listener_name}", "virtual_hosts": [host]}


def listener(name, port):
    manager = {
        "@type": HTTP,
        "stat_prefix": name,
        "rds": {"route_config_name": f"routes-{name}", "config_source": source(MODE, REFRESH)},
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


class Load(threading.Thread):
    """Asks for /stable all the time, on a new connection each time; no answer may be anything but 200."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.asked, self.failed, self.stopped = port, 0, 0, False

    def run(self):
        while not self.stopped:
            answer = get(self.port, "/stable")
            self.asked += 1
            if not answer or answer[0] != 200:
                self.failed += 1


def serve(directory, port):
    """Starts sovereign over the templates in a directory."""
    here = Path(__file__).parent
    for kind in TYPES:
        shutil.copy(here / "template.py", directory / f"{kind}.py")
    specs = [{"type": kind, "spec": {"protocol": "python", "path": str(directory / f"{kind}.py")}} for kind in TYPES]
    config = directory / "sovereign.json"
    config.write_text(json.dumps({"templates": {"default": specs}}))
    program = here.parents[1] / "target/tools/venv/bin/sovereign"
    environment = {
        **os.environ,
        "SOVEREIGN_CONFIG": f"file+json://{config}",
        "SOVEREIGN_HOST": "127.0.0.1",
        "SOVEREIGN_PORT": str(port),
        "SOVEREIGN_WORKERS": "1",
    }
    with open(directory / "sovereign.log", "wb") as log:
        server = subprocess.Popen([program], env=environment, stdout=log, stderr=log, start_new_session=True)
    eventually("sovereign", lambda: server.poll() is not None or get(port, "/healthcheck"))
    if server.poll() is not None:
        raise SystemExit("sovereign ended:\n" + (directory / "sovereign.log").read_text()[-4000:])
    return server


def publish(directory, state, nodes):
    """Makes a state the one that is served. A file is replaced whole: none is read half."""
    for kind in TYPES:
        content = {node: state.resources(ports)[kind] for node, ports in nodes.items()}
        part = directory / f"{kind}.json.part"
        part.write_text(json.dumps(content))
        part.replace(directory / f"{kind}.json")


def settled(proxy, state, ports):
    """Whether the proxy has all of a state in force: listeners, routes of this number, every endpoint's answer."""
    have = {line.split("::", 1)[0] for line in (get(proxy.admin, "/listeners") or (0, {}, ""))[2].splitlines()}
    if have != state.listeners or set(proxy.dump().get("clusters", {})) != set(state.clusters):
        return False
    for name in state.listeners:
        for cluster, wanted in state.clusters.items():
            for _ in wanted:
                answer = get(ports[name], f"/{cluster}")
                if not answer or answer[0] != 200 or int(answer[2]) not in wanted:
                    return False
                if answer[1].get("x-update") != str(state.number):
                    return False
    return True


def current(proxy, state):
    """What is in force. Envoy keeps the routes of listeners that still drain: those of the state count."""
    dump = proxy.dump()
    wanted = {f"routes-{name}" for name in state.listeners}
    dump["routes"] = {name: version for name, version in dump.get("routes", {}).items() if name in wanted}
    return dump


def run(shika, envoy, directory, updates, seed):
    """All of it; the number of failures."""
    chance = random.Random(seed)
    server_port, *admins = free_ports(3 + 2 * len(LISTENERS))
    listening = [dict(zip(LISTENERS, admins[2:])), dict(zip(LISTENERS, admins[2 + len(LISTENERS) :]))]
    nodes = dict(zip(("shika", "envoy"), listening))
    ports = upstreams.start(4)
    state = State(chance, 0, ports)
    publish(directory, state, nodes)
    running, server = [], None
    try:
        running.append(server := serve(directory, server_port))
        proxies = []
        for name, program, admin in zip(nodes, (shika, envoy), admins):
            text = bootstrap(MODE, name, server_port, admin, refresh=REFRESH)
            proxies.append(Proxy(name, program, text, admin, directory))
        running.extend(proxy.process for proxy in proxies)
        for proxy in proxies:
            eventually(f"{proxy.name}: the first state", lambda: settled(proxy, state, nodes[proxy.name]))
        loads = [Load(nodes[proxy.name]["stable"]) for proxy in proxies]
        for load in loads:
            load.start()
        disagreements = []
        for number in range(1, updates + 1):
            state = State(chance, number, ports)
            publish(directory, state, nodes)
            for proxy in proxies:
                eventually(f"{proxy.name}: update {number}", lambda: settled(proxy, state, nodes[proxy.name]))
            # Ports differ, and with them versions: names are what has to agree.
            disagreements += differences(*(current(proxy, state) for proxy in proxies), versions=False)
        for load in loads:
            load.stopped = True
            load.join()
        failures = len(disagreements)
        for line in disagreements:
            print(f"  {line}")
        for proxy, load in zip(proxies, loads):
            refused = proxy.rejected()
            failures += load.failed + refused
            print(
                f"sovereign, REST: {proxy.name}: {updates} updates in force, {load.asked} requests meanwhile, "
                f"{load.failed} failed, {refused} updates refused"
            )
        if server.poll() is not None:
            print("sovereign ended on its own", file=sys.stderr)
            failures += 1
        return failures
    finally:
        for process in running:
            if process is server:
                # Its workers outlive it otherwise.
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
