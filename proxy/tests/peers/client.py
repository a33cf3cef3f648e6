"""The client in front of its sidecar. Its one argument is JSON with the address of everything.

Runs each step and prints a line of JSON for it: its name and its outcome, a text without addresses and times, to be the same whichever proxies are between
the client and the applications. An outcome that begins with `FAILED:` is one nowhere. Steps that need not wait for one another run at once, so that the
lines come in any order.
"""

import asyncio
import json
import os
import sys
import traceback

import grpc
import h2.errors
import websockets
from websockets.asyncio.client import connect
from websockets.frames import Close, Frame, Opcode

import h2_peer
from h2_peer import Reset

# Bound on each step, in seconds.
LIMIT = float(os.environ.get("SHIKA_PEERS_LIMIT", "60"))

AT = json.loads(sys.argv[1])
STEPS = []


def step(function):
    STEPS.append(function)
    return function


# gRPC

CHANNELS = {}


def channel(name="grpc"):
    if name not in CHANNELS:
        CHANNELS[name] = grpc.aio.insecure_channel(AT[name])
    return CHANNELS[name]


def unary(method, service="Calls", over=None):
    return (over or channel()).unary_unary(f"/peers.{service}/{method}")


def to_stream(method, over=None):
    return (over or channel()).unary_stream(f"/peers.Calls/{method}")


def from_stream(method, over=None):
    return (over or channel()).stream_unary(f"/peers.Calls/{method}")


def both(method, over=None):
    return (over or channel()).stream_stream(f"/peers.Calls/{method}")


def ask(value):
    return json.dumps(value).encode()


async def seen(key, *of, control="control"):
    """What the application saw under `key`: the first event that is named in `of`."""
    answer = await unary("WaitFor", "Control", channel(control))(ask({"id": key, "of": of}))
    return answer.decode()


async def tell(key, what, control="control"):
    await unary("Tell", "Control", channel(control))(ask({"id": key, "what": what}))


async def ends(call):
    """How a call ends that is not to succeed."""
    try:
        found = await call
    except grpc.aio.AioRpcError as error:
        return failure(error)
    return f"OK {len(found)} bytes"


def failure(error):
    return f"{error.code().name} {error.details()!r}"


def pick(metadata, *names):
    return [(name, value) for name, value in metadata or () if name in names]


@step
async def grpc_unary():
    answers = [len(await unary("Echo")(bytes(size))) for size in (0, 1, 100, 16384, 70000, 1 << 20, 3 << 20)]
    return f"{answers}"


@step
async def grpc_metadata():
    """Text and binary, as initial and as trailing metadata; several of one name."""
    sent = [("x-echo-a", "plain"), ("x-echo-b-bin", bytes(range(256))), ("x-echo-twice", "1"), ("x-echo-twice", "2")]
    call = unary("Echo")(b"hi", metadata=sent)
    initial = pick(await call.initial_metadata(), "x-echo-a", "x-echo-b-bin", "x-echo-twice")
    trailing = pick(await call.trailing_metadata(), "x-trail-a", "x-trail-b-bin", "x-trail-twice")
    return f"{sorted(initial)} {sorted(trailing)} {(await call.code()).name}"


@step
async def grpc_headers():
    """What the application is told about the call."""
    names = ["te", "x-forwarded-proto", "x-forwarded-client-cert", "x-envoy-expected-rq-timeout-ms", "content-length"]
    answer = await unary("Headers")(ask(names))
    return answer.decode()


@step
async def grpc_client_streaming():
    async def messages():
        for number in range(500):
            yield bytes(number * 17 % 9000)

    return (await from_stream("Sum")(messages())).decode()


@step
async def grpc_server_streaming():
    count = length = 0
    async for message in to_stream("Count")(ask({"messages": 500, "size": 5000})):
        assert message.startswith(str(count).encode()), "a message is out of order"
        count += 1
        length += len(message)
    return f"{count} messages, {length} bytes"


@step
async def grpc_bidirectional_interleaved():
    """Each message is sent when the one before has been answered."""
    call = both("Chat")()
    for number in range(200):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    last = await call.read()
    return f"{last is grpc.aio.EOF} {(await call.code()).name}"


@step
async def grpc_bidirectional_large():
    """Windows fill up both ways."""
    call = both("Chat")()

    async def write():
        for _ in range(12):
            await call.write(bytes(1 << 20))
        await call.done_writing()

    writing = asyncio.ensure_future(write())
    sizes = [len(message) async for message in call]
    await writing
    return f"{len(sizes)} messages, {sum(sizes)} bytes, {(await call.code()).name}"


@step
async def grpc_trailers_only():
    call = unary("Abort")(ask({"code": "FAILED_PRECONDITION", "text": "not so: 100% caf\u00e9\n"}))
    status = await ends(call)
    details = pick(await call.trailing_metadata(), "grpc-status-details-bin", "x-more")
    return f"{status} {sorted(details)}"


@step
async def grpc_every_status():
    found = []
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            found.append(await ends(unary("Abort")(ask({"code": code.name, "text": "t"}))) == f"{code.name} 't'")
    return f"{found}"


@step
async def grpc_error_behind_messages():
    call = to_stream("Count")(ask({"messages": 3, "size": 10, "abort": "DATA_LOSS"}))
    count = 0
    try:
        async for _ in call:
            count += 1
    except grpc.aio.AioRpcError as error:
        return f"{count} {failure(error)} {pick(error.trailing_metadata(), 'grpc-status-details-bin')}"
    return f"{count} and no error"


@step
async def grpc_unknown_method():
    return await ends(unary("Nothing")(b""))


def while_sending(method):
    """How 20 calls end whose server is done before the client is: the end of the one crosses the rest of the other. With grpc's blocking interface: in
    the other a message that cannot be sent any more takes the place of the server's status ("Internal error from Core")."""
    def messages():
        for _ in range(200):
            yield bytes(2000)

    with grpc.insecure_channel(AT["grpc"]) as own:
        for _ in range(20):
            try:
                yield f"OK {len(own.stream_unary(f'/peers.Calls/{method}')(messages()))} bytes"
            except grpc.RpcError as error:
                yield failure(error)


@step
async def grpc_refused_while_sending():
    return f"{await asyncio.to_thread(lambda: set(while_sending('Hasty')))}"


@step
async def grpc_answered_while_sending():
    return f"{await asyncio.to_thread(lambda: set(while_sending('Early')))}"


@step
async def grpc_deadline():
    """The client's deadline passes: so it does at the server."""
    status = await ends(unary("Hang")(b"deadline", timeout=0.3))
    return f"{status} server: {await seen('deadline', 'over')}"


@step
async def grpc_deadline_in_stream():
    call = both("HangStream")(timeout=3)
    await call.write(b"stream-deadline")
    first = await call.read()
    try:
        await call.read()
        status = "it ended well"
    except grpc.aio.AioRpcError as error:
        status = failure(error)
    return f"{first} {status} server: {await seen('stream-deadline', 'over')}"


@step
async def grpc_deadline_arrives():
    """grpc-timeout goes through."""
    left = json.loads(await unary("Remaining")(b"", timeout=50))
    none = json.loads(await unary("Remaining")(b""))
    return f"{left is not None and 20 < left < 55} {none}"


@step
async def grpc_route_timeout():
    """The sidecar's own timeout is shorter."""
    status = await ends(unary("Hang")(b"route-timeout", metadata=[("x-route", "short")]))
    return f"{status} server: {await seen('route-timeout', 'over')}"


@step
async def grpc_route_timeout_in_stream():
    """It runs from the request's end, so a stream that the client keeps open is not bound by it; one whose response is under way is reset."""
    call = to_stream("Flood")(b"flood-timeout", metadata=[("x-route", "short")])
    try:
        async for _ in call:
            pass
        status = "it ended well"
    except grpc.aio.AioRpcError as error:
        status = failure(error)
    return f"{status} server: {await seen('flood-timeout', 'over')}"


@step
async def grpc_timeout_header_heeded():
    """By a route that heeds it, up to 30 s, and tells the server what counts. A call that asks for less is ended by whoever is first, in the same way."""
    heeds = ("x-route", "deadline")
    left = json.loads(await unary("Remaining")(b"", timeout=50, metadata=[heeds]))
    none = json.loads(await unary("Remaining")(b"", metadata=[heeds]))
    status = await ends(unary("Hang")(b"header-timeout", metadata=[heeds, ("grpc-timeout", "400m")]))
    return f"{left is not None and 5 < left < 35} {none} {status.split(' ')[0]} server: {await seen('header-timeout', 'over')}"


@step
async def grpc_cancel_waiting():
    call = unary("Hang")(b"cancel")
    # Sent only when somebody waits for it.
    waiting = asyncio.ensure_future(ends(call))
    await seen("cancel", "started")
    call.cancel()
    await asyncio.wait([waiting])
    return f"{call.cancelled()} server: {await seen('cancel', 'over')}"


@step
async def grpc_cancel_in_stream():
    call = both("HangStream")()
    await call.write(b"stream-cancel")
    first = await call.read()
    call.cancel()
    return f"{first} server: {await seen('stream-cancel', 'over')}"


@step
async def grpc_cancel_flood():
    """The client stops reading, then leaves: windows are full then."""
    call = to_stream("Flood")(b"flood")
    for _ in range(5):
        await call.read()
    call.cancel()
    return f"server: {await seen('flood', 'over')}"


@step
async def grpc_client_leaves():
    """The whole connection goes."""
    async with grpc.aio.insecure_channel(AT["grpc"], options=[("grpc.use_local_subchannel_pool", 1)]) as own:
        call = both("HangStream", own)()
        await call.write(b"left")
        first = await call.read()
    return f"{first} server: {await seen('left', 'over')}"


@step
async def grpc_compression():
    call = unary("Echo")(b"squeeze me " * 50000, compression=grpc.Compression.Gzip)
    answer = await call
    return f"{answer == b'squeeze me ' * 50000}"


@step
async def grpc_parallel():
    """All of them are at the server at once, in a few connections."""
    answers = await asyncio.gather(*(unary("Gather")(ask({"id": "g", "calls": 300})) for _ in range(300)))
    return f"{set(answers)} x {len(answers)}"


@step
async def grpc_too_large_for_the_client():
    call = to_stream("Count")(ask({"messages": 1, "size": 5 << 20}))
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "no error"


@step
async def grpc_too_large_for_the_server():
    own = grpc.aio.insecure_channel(AT["grpc"], options=[("grpc.max_send_message_length", -1)])
    async with own:
        status = await ends(unary("Echo", over=own)(bytes(5 << 20)))
    return status.split(" ")[0]


@step
async def grpc_large_metadata():
    """Within the header limits, and beyond them."""
    fits = await ends(unary("Echo")(b"", metadata=[("x-fill", "a" * 6000)]))
    options = [("grpc.max_metadata_size", 200 << 10), ("grpc.absolute_max_metadata_size", 200 << 10)]
    async with grpc.aio.insecure_channel(AT["grpc"], options=options) as own:
        status = await ends(unary("Echo", over=own)(b"", metadata=[("x-fill", "a" * (100 << 10))]))
    # How the end of a connection that was reset is read depends on the moment.
    status = status.replace("recvmsg:Connection reset by peer (104)", "Socket closed")
    return f"{fits} {status}"


@step
async def grpc_keepalive():
    """Pings of the client while nothing else happens. A proxy that takes them for a flood says goodbye with ENHANCE_YOUR_CALM."""
    options = [
        ("grpc.keepalive_time_ms", 20),
        ("grpc.keepalive_timeout_ms", 30000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(AT["grpc"], options=options) as own:
        call = both("HangStream", own)(timeout=2)
        await call.write(b"pings")
        await call.read()
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        again = await ends(unary("Echo", over=own)(b"x"))
    return f"{status} {again}"


@step
async def connect_pings():
    peer = await h2_peer.client(AT["grpc"])
    return f"{[await peer.ping(b'%08d' % number) for number in range(100)].count(True)}"


@step
async def grpc_connections_end_often():
    """The server ends each connection 50 ms after it began, as servers do in the long run; no call may notice."""
    found = [await ends(unary("Echo", over=channel("aging"))(b"x" * 100)) for _ in range(250)]
    return f"{ {outcome: found.count(outcome) for outcome in found} }"


@step
async def grpc_server_says_goodbye():
    """A call that is open finishes on the old connection; new ones go to the server's successor."""
    call = both("Chat", channel("victim"))()
    await call.write(b"before")
    first = await call.read()
    await unary("Restart", "Control", channel("victim_control"))(b"")
    answered = [await ends(unary("Echo", over=channel("victim"))(b"x")) for _ in range(20)]
    await call.write(b"after")
    second = await call.read()
    await call.done_writing()
    last = await call.read()
    return f"{first} {second} {last is grpc.aio.EOF} {(await call.code()).name} { {outcome: answered.count(outcome) for outcome in answered} }"


@step
async def grpc_server_dies():
    """In the middle of a stream; then there is no server."""
    call = to_stream("Count", channel("victim"))(ask({"messages": 2, "size": 10, "die": "victim"}))
    waiting = asyncio.ensure_future(ends(unary("Hang", over=channel("victim"))(b"waits")))
    await seen("waits", "started", control="victim_control")
    found = [await call.read(), await call.read()]
    try:
        await tell("victim", "go", control="victim_control")
    except grpc.aio.AioRpcError:
        # It may be gone before it has answered that.
        pass
    try:
        await call.read()
        status = "it ended well"
    except grpc.aio.AioRpcError as error:
        status = failure(error)
    after = await ends(unary("Echo", over=channel("victim"))(b"x"))
    return f"{len(found)} messages, {status}; waiting: {await waiting}; after: {after}"


# WebSocket


async def websocket_echo(at):
    """Text, binary, fragments, nothing, large, compressed or not."""
    found = []
    for compression in (None, "deflate"):
        async with connect(f"ws://{AT[at]}/echo", compression=compression, max_size=None, ping_interval=None) as ws:
            for message in ("text \u00e9", b"\x00\xff", "", bytes(70000), "x" * (2 << 20)):
                await ws.send(message)
                found.append(await ws.recv() == message)
            await ws.send(part for part in ("a", "b", "c"))
            found.append(await ws.recv() == "abc")
    return f"{found}"


async def websocket_fragments(at):
    async with connect(f"ws://{AT[at]}/fragments", ping_interval=None) as ws:
        return f"{[part async for part in ws.recv_streaming()]}"


async def websocket_pings(at):
    async with connect(f"ws://{AT[at]}/ping", ping_interval=None) as ws:
        message = await ws.recv()
        await (await ws.ping(b"from the client"))
        return f"{message}, and so did the server"


async def websocket_close_by_client(at):
    async with connect(f"ws://{AT[at]}/echo?{at}-close", ping_interval=None) as ws:
        await ws.close(4001, "client says bye")
        return f"{ws.close_code} {ws.close_reason} server: {await seen(f'{at}-close', 'closed')}"


async def websocket_close_by_server(at):
    async with connect(f"ws://{AT[at]}/close?{at}-closed", ping_interval=None) as ws:
        try:
            await ws.recv()
        except websockets.ConnectionClosed:
            pass
        return f"{ws.close_code} {ws.close_reason} server: {await seen(f'{at}-closed', 'closed')}"


async def websocket_dropped_by_client(at):
    """The connection goes without a close frame."""
    ws = await connect(f"ws://{AT[at]}/echo?{at}-drop", ping_interval=None)
    await ws.send("x")
    await ws.recv()
    ws.transport.abort()
    return f"server: {await seen(f'{at}-drop', 'closed')}"


async def websocket_dropped_in_flood(at):
    """The same while the server sends more than anybody reads."""
    ws = await connect(f"ws://{AT[at]}/flood?{at}-flood", ping_interval=None)
    for _ in range(5):
        await ws.recv()
    ws.transport.abort()
    return f"server: {await seen(f'{at}-flood', 'closed')}"


async def websocket_dropped_by_server(at):
    async with connect(f"ws://{AT[at]}/drop?{at}-dropped", ping_interval=None) as ws:
        await ws.send("x")
        try:
            await ws.recv()
        except websockets.ConnectionClosed:
            pass
        return f"{ws.close_code}"


async def websocket_refused(at):
    try:
        async with connect(f"ws://{AT[at]}/refused"):
            return "accepted"
    except websockets.InvalidStatus as error:
        response = error.response
        return f"{response.status_code} {bytes(response.body)!r} {response.headers.get('upgrade')}"


async def websocket_not_switched(at):
    """The application takes no notice of the upgrade."""
    try:
        async with connect(f"ws://{AT[at]}/stay"):
            return "accepted"
    except websockets.InvalidStatus as error:
        response = error.response
        return f"{response.status_code} {bytes(response.body)!r} {response.headers.get('upgrade')}"
    except websockets.InvalidHandshake as error:
        return f"{error}"


async def websocket_headers(at):
    """What the application is told: it shows that instead of switching."""
    try:
        async with connect(f"ws://{AT[at]}/headers", host="127.0.0.1", port=int(AT[at].rsplit(":", 1)[1])):
            return "accepted"
    except websockets.InvalidStatus as error:
        text = error.response.body.decode().replace(AT[at], "<address>")
        return f"{error.response.status_code} {text}"


async def websocket_burst(at):
    """Much, and at once the end."""
    async with connect(f"ws://{AT[at]}/burst", max_size=None, ping_interval=None) as ws:
        length = len(await ws.recv())
        try:
            await ws.recv()
        except websockets.ConnectionClosed:
            pass
        return f"{length} {ws.close_code} {ws.close_reason}"


async def websocket_limited(at, by):
    async with connect(f"ws://{AT[at]}/echo?{at}-{by}", additional_headers={"x-route": by}, ping_interval=None) as ws:
        await ws.send("x")
        await ws.recv()
        try:
            await ws.recv()
        except websockets.ConnectionClosed:
            pass
        return f"{ws.close_code} server: {await seen(f'{at}-{by}', 'closed')}"


async def websocket_idle(at):
    """The route bounds the time without a byte."""
    return await websocket_limited(at, "idle")


async def websocket_long(at):
    """The route bounds the life of a request."""
    return await websocket_limited(at, "long")


KEY = [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-version", "13")]


async def websocket_early_bytes(at):
    """A frame right behind the handshake, before its answer."""
    host, port = AT[at].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"GET /echo HTTP/1.1\r\nhost: {AT[at]}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in KEY) + "\r\n"
    frame = Frame(Opcode.TEXT, b"early").serialize(mask=True)
    writer.write(head.encode() + frame)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    kept = sorted(line for line in answer if line.startswith(("http/", "upgrade:", "connection:", "sec-", "content-length:", "transfer-")))
    echoed = await reader.readexactly(7)
    writer.close()
    return f"{kept} {echoed}"


for run in (
    websocket_echo,
    websocket_fragments,
    websocket_pings,
    websocket_close_by_client,
    websocket_close_by_server,
    websocket_dropped_by_client,
    websocket_dropped_in_flood,
    websocket_dropped_by_server,
    websocket_burst,
    websocket_idle,
    websocket_long,
    websocket_refused,
    websocket_not_switched,
    websocket_headers,
    websocket_early_bytes,
):
    for link in ("h1", "h2"):
        def bound(run=run, link=link):
            return run(f"websocket_{link}")

        bound.__name__ = f"{run.__name__}_over_{link}"
        STEPS.append(bound)


# Extended CONNECT


async def tunnel(path, **more):
    peer = await h2_peer.client(AT["tunnel"])
    return peer, peer.connect_to(AT["tunnel"], path, **more)


@step
async def connect_is_offered():
    peer = await h2_peer.client(AT["tunnel"])
    return f"{peer.http2.remote_settings.enable_connect_protocol}"


@step
async def connect_echo():
    """Small, large and to the end of each direction by itself."""
    _, stream = await tunnel("/echo?connect-echo")
    head = await stream.headers()
    await stream.send(b"small")
    small = await stream.data(5)
    sending = asyncio.ensure_future(stream.send(bytes(3 << 20), end=True))
    rest = await stream.rest()
    await sending
    ended = await seen("connect-echo", "ended", "reset")
    return f"{head[':status']} {head.get('x-asked')} {small} {len(rest)} bytes, last {rest[-3:]} server: {ended}"


@step
async def connect_head():
    """Nothing of the way between is left in the answer's head."""
    _, stream = await tunnel("/echo?connect-head")
    head = await stream.headers()
    return f"{sorted(name for name in head if name not in ('date', 'x-envoy-upstream-service-time'))}"


@step
async def connect_server_speaks_first():
    _, stream = await tunnel("/first?connect-first")
    await stream.headers()
    return f"{await stream.data(19)}"


@step
async def connect_burst():
    """The server ends first, with more on its way than windows hold; that ends the tunnel."""
    _, stream = await tunnel("/burst")
    await stream.headers()
    try:
        return f"{len(await stream.rest())} bytes"
    except Reset as reset:
        return f"reset {reset.code}"


@step
async def connect_early_bytes():
    """Sent before the answer."""
    _, stream = await tunnel("/echo?connect-early")
    await stream.send(b"early")
    await stream.headers()
    return f"{await stream.data(5)}"


@step
async def connect_reset_by_client():
    _, stream = await tunnel("/echo?connect-reset")
    await stream.headers()
    await stream.send(b"x")
    await stream.data(1)
    stream.reset()
    return f"server: {await seen('connect-reset', 'ended', 'reset')}"


@step
async def connect_left_by_client():
    peer, stream = await tunnel("/echo?connect-left")
    await stream.headers()
    await stream.send(b"x")
    await stream.data(1)
    peer.transport.abort()
    return f"server: {await seen('connect-left', 'ended', 'reset')}"


@step
async def connect_reset_by_server():
    _, stream = await tunnel("/reset?connect-server-reset")
    await stream.headers()
    await stream.send(b"go")
    try:
        rest = await stream.rest()
    except Reset as reset:
        return f"reset {reset.code}"
    return f"ended with {rest}"


@step
async def connect_refused():
    _, stream = await tunnel("/refused")
    head = await stream.headers()
    return f"{head[':status']} {head.get('x-why')} {await stream.rest()}"


@step
async def connect_other_protocol():
    """One that no upgrade is configured for."""
    _, stream = await tunnel("/echo", protocol="other")
    head = await stream.headers()
    return f"{head[':status']} {await stream.rest()}"


@step
async def connect_without_protocol():
    """Classic CONNECT, which no route takes."""
    peer = await h2_peer.client(AT["tunnel"])
    stream = peer.open([(":method", "CONNECT"), (":authority", "example.com:443")])
    head = await stream.headers()
    return f"{head[':status']} {await stream.rest()}"


@step
async def connect_beside_requests():
    """40 tunnels and as many requests share a connection."""
    peer = await h2_peer.client(AT["tunnel"])

    async def one(number):
        stream = peer.connect_to(AT["tunnel"], f"/echo?connect-{number}")
        status = (await stream.headers())[":status"]
        assert status == "200", status
        await stream.send(b"%5d" % number)
        answer = await stream.data(5)
        await stream.send(b"", end=True)
        return answer == b"%5d" % number and await stream.rest() == b"bye"

    async def request():
        head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", AT["tunnel"])]
        stream = peer.open(head, end=True)
        return (await stream.headers())[":status"] == "200" and await stream.rest() == b""

    found = await asyncio.gather(*(one(number) for number in range(40)), *(request() for _ in range(40)))
    return f"{found.count(True)}"


@step
async def connect_to_an_http1_server():
    """A WebSocket from an HTTP/2 client to a server that knows HTTP/1 only; the key that HTTP/1 asks for goes along."""
    peer = await h2_peer.client(AT["websocket_h2"])
    stream = peer.connect_to(AT["websocket_h2"], "/echo?connect-http1", more=KEY)
    head = await stream.headers()
    await stream.send(Frame(Opcode.TEXT, b"over h2").serialize(mask=True))
    echoed = await stream.data(9)
    await stream.send(Frame(Opcode.CLOSE, Close(1000, "done").serialize()).serialize(mask=True))
    closed = await stream.data(8)
    names = sorted(name for name in head if name in ("upgrade", "connection", "content-length", "transfer-encoding"))
    return f"{head[':status']} {names} {echoed} {closed} server: {await seen('connect-http1', 'closed')}"


@step
async def connect_to_an_http1_server_that_refuses():
    peer = await h2_peer.client(AT["websocket_h2"])
    stream = peer.connect_to(AT["websocket_h2"], "/refused", more=KEY)
    head = await stream.headers()
    return f"{head[':status']} {await stream.rest()}"


@step
async def connect_to_an_http1_server_that_stays():
    """To an HTTP/2 client a 200 would say that it has switched."""
    peer = await h2_peer.client(AT["websocket_h2"])
    stream = peer.connect_to(AT["websocket_h2"], "/stay", more=KEY)
    try:
        head = await stream.headers()
        return f"{head[':status']} {await stream.rest()}"
    except Reset as reset:
        return f"reset {reset.code}"


# Drains, which nothing can follow


async def admin(which, path, method="POST"):
    host, port = AT[which].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


@step
async def nothing_is_left_open():
    """All requests of the steps before are over for both sidecars."""
    names = ("downstream_rq_active", "upstream_rq_active", "upstream_rq_pending_active", "downstream_cx_upgrades_active")

    async def left():
        found = []
        for which in ("client_admin", "server_admin"):
            text = await admin(which, "/stats", "GET")
            lines = [line.rsplit(": ", 1) for line in text.splitlines() if ": " in line]
            found += [f"{which} {name} {value}" for name, value in lines if name.endswith(names) and ".admin." not in name and value != "0"]
        return found

    # Admin interfaces announce nothing, so that they are asked again and again.
    until = asyncio.get_running_loop().time() + LIMIT * 0.9
    while found := await left():
        assert asyncio.get_running_loop().time() < until, f"{found}"
        await asyncio.sleep(0.02)
    return "nothing"


async def drain(which, command):
    """A stream that is open goes on; calls go on as long as the listener does."""
    own = grpc.aio.insecure_channel(AT["grpc"], options=[("grpc.use_local_subchannel_pool", 1)])
    call = both("Chat", own)()
    await call.write(b"before")
    await call.read()
    answer = await admin(which, command)
    found = [await ends(unary("Echo", over=own)(b"x")) for _ in range(100)]
    await call.write(b"after")
    after = await call.read()
    await call.done_writing()
    await call.read()
    await own.close()
    return f"{answer.splitlines()[0]} {after} {(await call.code()).name} { {outcome: found.count(outcome) for outcome in found} }"


@step
async def drain_of_the_servers_sidecar():
    return await drain("server_admin", "/healthcheck/fail")


@step
async def drain_of_the_clients_sidecar():
    return await drain("client_admin", "/healthcheck/fail")


@step
async def drain_of_a_tunnel():
    """A WebSocket lives on while its sidecars drain."""
    async with connect(f"ws://{AT['websocket_h2']}/echo", ping_interval=None) as ws:
        await ws.send("drained")
        return await ws.recv()


async def outcome(run):
    """Runs a step and prints its line."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        found = await asyncio.wait_for(run(), LIMIT)
    except Exception:
        found = "FAILED: " + " | ".join(traceback.format_exc(limit=-3).splitlines())
    if run.__name__.startswith("connect"):
        for peer in h2_peer.CLIENTS:
            peer.transport.abort()
        h2_peer.CLIENTS.clear()
    print(json.dumps({"step": run.__name__, "outcome": found, "seconds": loop.time() - began}), flush=True)


async def all_at_once(runs):
    await asyncio.gather(*(outcome(run) for run in runs))


async def one_by_one(runs):
    for run in runs:
        await outcome(run)


async def main():
    only = AT.get("only") or ""

    def named(*beginnings):
        return [run for run in STEPS if only in run.__name__ and run.__name__.startswith(beginnings)]

    # WebSockets wait for connections to be closed in earnest, which some proxies put off by a second: all at once.
    await asyncio.gather(one_by_one(named("grpc")), all_at_once(named("websocket")), one_by_one(named("connect")))
    await one_by_one(named("nothing", "drain"))
    for opened in CHANNELS.values():
        await opened.close()


asyncio.run(main())
