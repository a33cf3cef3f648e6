"""One end of an HTTP/2 connection that knows extended CONNECT (RFC 8441), over the `h2` package."""

import asyncio

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings


class Reset(Exception):
    """The other end reset the stream, or closed the connection under it (code None)."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Stream:
    """A stream: its heads, its data, its end."""

    def __init__(self, peer, number):
        self.peer = peer
        self.number = number
        self.arrived = asyncio.Queue()
        self.over = None

    async def next(self):
        """The next of: ("headers", dict), ("data", bytes), ("end", None). Raises Reset, for ever after."""
        if self.over is not None and self.arrived.empty():
            raise self.over
        kind, value = await self.arrived.get()
        if kind == "reset":
            self.over = value
            raise value
        return kind, value

    async def headers(self):
        kind, value = await self.next()
        assert kind == "headers", f"{kind} came in place of headers"
        return value

    async def data(self, length):
        """Exactly so many bytes of data."""
        found = b""
        while len(found) < length:
            kind, value = await self.next()
            assert kind == "data", f"{kind} came after {len(found)} of {length} bytes"
            found += value
        assert len(found) == length, f"{len(found)} bytes came in place of {length}"
        return found

    async def rest(self):
        """All data up to the end of the stream."""
        found = b""
        while True:
            kind, value = await self.next()
            if kind == "end":
                return found
            assert kind == "data", f"{kind} came in place of data"
            found += value

    def send_headers(self, headers, end=False):
        self.peer.http2.send_headers(self.number, headers, end_stream=end)
        self.peer.flush()

    async def send(self, data, end=False):
        """Sends as the windows allow."""
        while data:
            room = min(
                self.peer.http2.local_flow_control_window(self.number), self.peer.http2.max_outbound_frame_size
            )
            if room == 0:
                self.peer.moved.clear()
                await self.peer.moved.wait()
                continue
            self.peer.http2.send_data(self.number, data[:room])
            self.peer.flush()
            data = data[room:]
        if end:
            self.peer.http2.end_stream(self.number)
            self.peer.flush()

    def reset(self, code=h2.errors.ErrorCodes.CANCEL):
        self.peer.http2.reset_stream(self.number, code)
        self.peer.flush()


class Lasting(h2.connection.H2Connection):
    """`h2` takes no frame any more behind a GOAWAY, where streams that are open go on (RFC 9113 section 6.8)."""

    def _receive_goaway_frame(self, frame):
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code
        return [], [event]


class Peer(asyncio.Protocol):
    """A connection. A server hands each stream to `serve`, a coroutine function."""

    def __init__(self, serve=None):
        config = h2.config.H2Configuration(client_side=serve is None, header_encoding="utf-8")
        self.http2 = Lasting(config)
        self.serve = serve
        self.streams = {}
        self.tasks = set()
        self.moved = asyncio.Event()
        self.settings = asyncio.Event()
        self.pongs = asyncio.Queue()
        self.goaway = asyncio.Event()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        if self.serve:
            self.http2.local_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        self.http2.initiate_connection()
        self.flush()

    def flush(self):
        data = self.http2.data_to_send()
        if data:
            self.transport.write(data)

    def data_received(self, data):
        try:
            events = self.http2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.flush()
            self.transport.close()
            return
        for event in events:
            self.handle(event)
        self.flush()

    def handle(self, event):
        if isinstance(event, h2.events.RequestReceived):
            stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
            stream.arrived.put_nowait(("headers", dict(event.headers)))
            task = asyncio.ensure_future(self.serve(stream))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings.set()
            self.moved.set()
        elif isinstance(event, h2.events.WindowUpdated):
            self.moved.set()
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs.put_nowait(event.ping_data)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway.set()
        else:
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream is None:
                return
            if isinstance(event, h2.events.ResponseReceived):
                stream.arrived.put_nowait(("headers", dict(event.headers)))
            elif isinstance(event, h2.events.DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.data:
                    stream.arrived.put_nowait(("data", event.data))
            elif isinstance(event, h2.events.StreamEnded):
                stream.arrived.put_nowait(("end", None))
            elif isinstance(event, h2.events.StreamReset):
                stream.arrived.put_nowait(("reset", Reset(int(event.error_code))))
                self.moved.set()

    def connection_lost(self, _error):
        for stream in self.streams.values():
            stream.arrived.put_nowait(("reset", Reset(None)))
        self.moved.set()

    def open(self, headers, end=False):
        """A client's new stream."""
        number = self.http2.get_next_available_stream_id()
        stream = self.streams[number] = Stream(self, number)
        stream.send_headers(headers, end)
        return stream

    def connect_to(self, authority, path, protocol="websocket", more=()):
        """A client's new stream that asks to become a tunnel."""
        head = [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
        ]
        return self.open(head + list(more))

    async def ping(self, data):
        self.http2.ping(data)
        self.flush()
        return await self.pongs.get() == data


# Those that `client` has made.
CLIENTS = []


async def client(address):
    """A connection whose other end has told its settings."""
    host, port = address.rsplit(":", 1)
    _, peer = await asyncio.get_running_loop().create_connection(Peer, host, int(port))
    CLIENTS.append(peer)
    await peer.settings.wait()
    return peer
