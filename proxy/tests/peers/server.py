"""The applications behind the server's sidecar: gRPC, WebSocket and extended CONNECT.

Prints one line of JSON with the address of each, and serves until its standard input ends. Applications record what they see of a call's end, under the
id that the call carries; a client asks for that at the `control` address, past the sidecars.
"""

import asyncio
import collections
import json
import os
import sys

import grpc
import h2.errors
import websockets
from websockets.asyncio.server import serve as serve_websocket

from h2_peer import Peer, Reset


class Events:
    """What was seen, by id."""

    def __init__(self):
        self.seen = collections.defaultdict(list)
        self.changed = asyncio.Condition()

    async def record(self, key, what):
        async with self.changed:
            self.seen[key].append(what)
            self.changed.notify_all()

    async def first(self, key, of):
        """Waits for the first event of `key` whose name is in `of`."""
        async with self.changed:
            while True:
                for what in self.seen[key]:
                    if what.split(" ")[0] in of:
                        return what
                await self.changed.wait()


EVENTS = Events()


async def watch(key, context):
    """Records that a call has begun, and how it ends."""
    context.add_done_callback(lambda _: asyncio.ensure_future(EVENTS.record(key, "over")))
    await EVENTS.record(key, "started")


class Calls:
    """The gRPC application. Messages are bytes; where they tell what to do they are JSON."""

    def __init__(self):
        self.gathering = {}

    async def echo(self, request, context):
        metadata = list(context.invocation_metadata())
        mine = [(name, value) for name, value in metadata if name.startswith("x-echo")]
        await context.send_initial_metadata(tuple(mine))
        context.set_trailing_metadata(tuple((f"x-trail{name[6:]}", value) for name, value in mine))
        return request

    async def headers(self, request, context):
        """The metadata that arrived under the names that are asked for."""
        names = json.loads(request)
        found = {name: value for name, value in context.invocation_metadata() if name in names}
        return json.dumps([found.get(name) for name in names]).encode()

    async def remaining(self, _request, context):
        """Seconds to the deadline that arrived."""
        return json.dumps(context.time_remaining()).encode()

    async def sum(self, requests, context):
        count = length = 0
        async for request in requests:
            count += 1
            length += len(request)
        return f"{count} messages, {length} bytes".encode()

    async def count(self, request, context):
        asked = json.loads(request)
        for number in range(asked["messages"]):
            yield str(number).encode().ljust(asked["size"], b".")
        if asked.get("abort"):
            await context.abort(grpc.StatusCode[asked["abort"]], "enough: 100% \u00e9", (("grpc-status-details-bin", b"\x00\xff\x01"),))
        if asked.get("die"):
            # The messages have to be out before the process is gone: the client says so.
            await EVENTS.first(asked["die"], ["go"])
            os._exit(1)

    async def chat(self, requests, context):
        async for request in requests:
            yield request

    async def abort(self, request, context):
        asked = json.loads(request)
        await context.abort(
            grpc.StatusCode[asked["code"]], asked["text"], (("grpc-status-details-bin", b"\x08\x07\xff\x00"), ("x-more", "yes"))
        )

    async def hasty(self, requests, context):
        """Refuses after the first message, with more on the way."""
        async for _ in requests:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more of that")

    async def early(self, requests, context):
        """Answers after the first message, with more on the way."""
        async for request in requests:
            return request

    async def hang(self, request, context):
        await watch(request.decode(), context)
        await asyncio.Event().wait()

    async def hang_stream(self, requests, context):
        """Answers the first message, then nothing more."""
        async for request in requests:
            await watch(request.decode(), context)
            yield b"here"
        await asyncio.Event().wait()

    async def flood(self, request, context):
        """Sends until it is stopped."""
        await watch(request.decode(), context)
        while True:
            yield bytes(16384)

    async def gather(self, request, context):
        """Answers when so many calls are here at once."""
        asked = json.loads(request)
        here = self.gathering.setdefault(asked["id"], [0, asyncio.Event()])
        here[0] += 1
        if here[0] == asked["calls"]:
            here[1].set()
        await here[1].wait()
        return str(here[0]).encode()


def handlers(calls):
    rpc = {
        "Echo": grpc.unary_unary_rpc_method_handler(calls.echo),
        "Headers": grpc.unary_unary_rpc_method_handler(calls.headers),
        "Remaining": grpc.unary_unary_rpc_method_handler(calls.remaining),
        "Sum": grpc.stream_unary_rpc_method_handler(calls.sum),
        "Count": grpc.unary_stream_rpc_method_handler(calls.count),
        "Chat": grpc.stream_stream_rpc_method_handler(calls.chat),
        "Abort": grpc.unary_unary_rpc_method_handler(calls.abort),
        "Hasty": grpc.stream_unary_rpc_method_handler(calls.hasty),
        "Early": grpc.stream_unary_rpc_method_handler(calls.early),
        "Hang": grpc.unary_unary_rpc_method_handler(calls.hang),
        "HangStream": grpc.stream_stream_rpc_method_handler(calls.hang_stream),
        "Flood": grpc.unary_stream_rpc_method_handler(calls.flood),
        "Gather": grpc.unary_unary_rpc_method_handler(calls.gather),
    }
    return grpc.method_handlers_generic_handler("peers.Calls", rpc)


async def grpc_server(port=0, options=()):
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 1), ("grpc.max_concurrent_streams", 1000), *options], compression=grpc.Compression.Gzip
    )
    server.add_generic_rpc_handlers((handlers(Calls()),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


class Control:
    """Past the sidecars: what was seen, and what the victim is to do."""

    def __init__(self, restarting):
        self.restarting = restarting

    async def wait_for(self, request, _context):
        asked = json.loads(request)
        return (await EVENTS.first(asked["id"], asked["of"])).encode()

    async def tell(self, request, _context):
        asked = json.loads(request)
        await EVENTS.record(asked["id"], asked["what"])
        return b""

    async def restart(self, _request, _context):
        """The gRPC server says goodbye, lets its calls finish, and another takes its port."""
        old, port = self.restarting
        asyncio.ensure_future(old.stop(60))
        self.restarting = await grpc_server(port)
        return b""

    def handler(self):
        rpc = {
            "WaitFor": grpc.unary_unary_rpc_method_handler(self.wait_for),
            "Tell": grpc.unary_unary_rpc_method_handler(self.tell),
            "Restart": grpc.unary_unary_rpc_method_handler(self.restart),
        }
        return grpc.method_handlers_generic_handler("peers.Control", rpc)


async def websocket(connection):
    """Echoes; by path it does something else first."""
    path, _, key = connection.request.path.partition("?")
    if path == "/close":
        await connection.close(4002, "server says bye")
    elif path == "/drop":
        await connection.recv()
        connection.transport.abort()
    elif path == "/fragments":
        await connection.send(part for part in ("one ", "two ", "three"))
    elif path == "/ping":
        await (await connection.ping(b"from the server"))
        await connection.send("ponged")
    elif path == "/burst":
        await connection.send(bytes(2 << 20))
        await connection.close(1000, "that is all")
    elif path == "/flood":
        try:
            while True:
                await connection.send(bytes(16384))
        except websockets.ConnectionClosed:
            pass
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosed:
        pass
    # Without the peer's close frame there is no code: 1006.
    await EVENTS.record(key, f"closed {connection.close_code} {connection.close_reason}")


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(401, "who are you?\n")
    if request.path == "/headers":
        names = ["host", "upgrade", "connection", "x-forwarded-proto", "transfer-encoding", "content-length", "te"]
        return connection.respond(403, json.dumps({name: request.headers.get(name) for name in names}))
    if request.path == "/stay":
        return connection.respond(200, "still HTTP\n")
    return None


async def tunnel(stream):
    """Extended CONNECT: echoes; by path it does something else first."""
    head = await stream.headers()
    path, _, key = head[":path"].partition("?")
    asked = f"{head.get(':method')} {head.get(':protocol')} {head.get(':scheme')} {head.get(':path')}"
    if head.get(":protocol") is None:
        stream.send_headers([(":status", "200"), ("x-asked", asked)], end=True)
        return
    if path == "/refused":
        stream.send_headers([(":status", "403"), ("x-why", "not you")])
        await stream.send(b"go away", end=True)
        return
    stream.send_headers([(":status", "200"), ("x-asked", asked)])
    try:
        if path == "/reset":
            await stream.data(2)
            stream.reset(h2.errors.ErrorCodes.CANCEL)
            return
        if path == "/first":
            await stream.send(b"server speaks first")
        if path == "/burst":
            await stream.send(bytes(2 << 20), end=True)
        while True:
            kind, value = await stream.next()
            if kind == "end":
                await EVENTS.record(key, "ended")
                if path == "/echo":
                    await stream.send(b"bye", end=True)
                return
            await stream.send(value)
    except Reset as reset:
        await EVENTS.record(key, f"reset {reset.code}")


async def main():
    calls, calls_port = await grpc_server()
    aging, aging_port = await grpc_server(options=[("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 60000)])
    control = grpc.aio.server()
    control.add_generic_rpc_handlers((Control((calls, calls_port)).handler(),))
    control_port = control.add_insecure_port("127.0.0.1:0")
    await control.start()
    web = await serve_websocket(websocket, "127.0.0.1", 0, process_request=refuse, max_size=None, ping_interval=None)
    tunnels = await asyncio.get_running_loop().create_server(lambda: Peer(tunnel), "127.0.0.1", 0)
    ports = {
        "grpc": calls_port,
        "aging": aging_port,
        "control": control_port,
        "websocket": web.sockets[0].getsockname()[1],
        "tunnel": tunnels.sockets[0].getsockname()[1],
    }
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


asyncio.run(main())
