//! gRPC without a schema: messages go back as they come.

use std::io;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

/// Windows offered, in bytes: large enough that messages never wait for an update.
const WINDOW: u32 = 1 << 20;

/// What goes back.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// What came.
    Echo,
    /// One message without fields, once the call's last message is read.
    Empty,
}

/// Serves one connection.
pub async fn serve(stream: TcpStream, answer: Answer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1_000)
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(call) = connection.accept().await {
        let (request, reply) = call.map_err(io::Error::other)?;
        // A call that is reset ends alone.
        tokio::spawn(async move { serve_call(request, reply, answer).await });
    }
    Ok(())
}

async fn serve_call(
    request: Request<RecvStream>,
    mut reply: SendResponse<Bytes>,
    answer: Answer,
) -> Result<(), h2::Error> {
    let mut head = Response::new(());
    head.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut outgoing = reply.send_response(head, false)?;
    let mut incoming = request.into_body();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        match answer {
            // What the peer's window does not take yet is kept by h2. A client has one message under way, so that is bounded.
            Answer::Echo => outgoing.send_data(chunk, false)?,
            Answer::Empty => {}
        }
    }
    if matches!(answer, Answer::Empty) {
        outgoing.send_data(Bytes::from_static(&[0; 5]), false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    outgoing.send_trailers(trailers)
}
