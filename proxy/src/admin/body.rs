//! Bodies of answers, made piece by piece.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;

use super::{clusters, config_dump, prometheus, stats};

/// Bytes per piece: enough to keep the socket busy, little enough to keep the control thread free.
const PIECE: usize = 32 * 1024;

/// What is sent.
pub enum Body {
    /// Whole.
    Text(Option<Bytes>),
    /// `/stats`
    Stats(Box<stats::Listing>),
    /// `/stats/prometheus`
    Prometheus(Box<prometheus::Exposition>),
    /// `/clusters`
    Clusters(Box<clusters::Listing>),
    /// `/config_dump`
    ConfigDump(Box<config_dump::Dump>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut out = String::new();
        let more = match self.get_mut() {
            Body::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Body::Stats(listing) => listing.write(&mut out, PIECE),
            Body::Prometheus(exposition) => exposition.write(&mut out, PIECE),
            Body::Clusters(listing) => listing.write(&mut out, PIECE),
            Body::ConfigDump(dump) => dump.write(&mut out, PIECE),
        };
        match (out.is_empty(), more) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(out.into())))),
            (true, false) => Poll::Ready(None),
            // Everything in this piece was filtered out: let others have a turn before the next.
            (true, true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
