//! Scripted HTTP/2 upstreams.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::task::JoinSet;

use crate::case::{Fate, Messages, Reply, ReplyEnd, Upstream};
use crate::control;
use crate::frames::Watched;
use crate::grpc;
use crate::h2_client::{header_map, pairs, read_body, send_body};
use crate::run::Run;
use crate::upstream::reply_for;
use crate::wire::Io;

/// Serves one HTTP/2 connection.
pub async fn run(run: &Arc<Run>, name: &str, upstream: &Upstream, index: usize, io: Box<dyn Io>) -> Fate {
    let (io, frames) = Watched::new(io, true);
    let Some(seen) = run.seen.get(name) else { return Fate::Any };
    let handshake = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake::<_, Bytes>(io);
    let mut connection = match handshake.await {
        Ok(connection) => connection,
        Err(error) => {
            run.recorder.note(&format!("upstream.{name}.connection[{index}].malformed"), &error.to_string());
            return Fate::Any;
        }
    };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        if run.serving.contains_key(name) && control::is_discovery(request.uri().path()) {
            streams.spawn(control::serve(run.clone(), name.to_owned(), request, respond));
            continue;
        }
        let number = seen.borrow().started;
        seen.send_modify(|seen| seen.started += 1);
        let reply = reply_for(upstream, number);
        if reply.end == Some(ReplyEnd::Close) {
            // GOAWAY: this stream is served, the next one needs a new connection.
            connection.graceful_shutdown();
        }
        let close = matches!(reply.end, Some(ReplyEnd::CloseWithoutReply));
        let (run, name) = (run.clone(), name.to_owned());
        let reply = match &upstream.grpc {
            Some(messages) => grpc::framed(reply, messages, &run, &name),
            None => reply,
        };
        let serving = serve(run, name, index, number, reply, request, respond, upstream.grpc.clone());
        if close {
            serving.await;
            return Fate::Any;
        }
        streams.spawn(serving);
    }
    frames.lock().end.as_ref().map_or(Fate::Any, crate::wire::End::fate)
}

#[allow(clippy::too_many_arguments, reason = "one stream, taken apart")]
async fn serve(
    run: Arc<Run>,
    name: String,
    connection: usize,
    number: usize,
    reply: Reply,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    messages: Option<Messages>,
) {
    let path = format!("upstream.{name}.request[{number}]");
    let (head, mut stream) = request.into_parts();
    let recorder = &run.recorder;
    recorder.note(&format!("{path}.connection"), &connection.to_string());
    let target = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    recorder.note(&format!("{path}.line"), &format!("{} {target} HTTP/2", head.method));
    if let Some(authority) = head.uri.authority() {
        recorder.note(&format!("{path}.header.:authority"), authority.as_str());
    }
    if let Some(scheme) = head.uri.scheme_str() {
        recorder.note(&format!("{path}.header.:scheme"), scheme);
    }
    recorder.note_headers(&format!("{path}.header"), &pairs(&head.headers));
    if reply.on_head {
        answer(&mut respond, &reply).await;
    }
    let (body, trailers, error) = read_body(&mut stream).await;
    match (error, messages) {
        (None, Some(messages)) => grpc::note(recorder, &path, &messages, &body),
        (None, None) => recorder.note_body(&format!("{path}.body"), &body),
        (Some(error), _) => {
            let code = error.reason().map_or_else(|| "(connection)".to_owned(), |reason| format!("{reason:?}"));
            recorder.note(&format!("{path}.reset"), &code);
        }
    }
    recorder.note_headers(&format!("{path}.trailer"), &pairs(&trailers));
    if let Some(seen) = run.seen.get(&name) {
        seen.send_modify(|seen| seen.done += 1);
    }
    if !reply.on_head {
        answer(&mut respond, &reply).await;
    }
}

/// Sends the reply. Whether the subject takes it shows at the client.
async fn answer(respond: &mut SendResponse<Bytes>, reply: &Reply) {
    match reply.end {
        Some(ReplyEnd::ResetWithoutReply) => respond.send_reset(Reason::INTERNAL_ERROR),
        Some(ReplyEnd::CloseWithoutReply) => {}
        Some(ReplyEnd::Silence) => {
            // Until the subject gives the stream up.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
        Some(ReplyEnd::Close) | None => {
            let _ = send(respond, reply).await;
        }
    }
}

async fn send(respond: &mut SendResponse<Bytes>, reply: &Reply) -> anyhow::Result<()> {
    let mut response = http::Response::builder().status(reply.status.unwrap_or(200)).body(())?;
    *response.headers_mut() = header_map(&reply.headers)?;
    let body = reply.body.as_ref().map(|body| body.bytes()).unwrap_or_default();
    let trailers = (!reply.trailers.is_empty()).then(|| header_map(&reply.trailers)).transpose()?;
    let bodiless = body.is_empty() && trailers.is_none();
    let mut stream = respond.send_response(response, bodiless)?;
    if !bodiless {
        send_body(&mut stream, body, trailers, true).await?;
    }
    Ok(())
}
