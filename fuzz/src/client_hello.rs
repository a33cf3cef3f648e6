//! What the first bytes of a connection say, and whom a ClientHello asks for.

use shika_data::fuzzing::{self, Findings, InspectError};
use tokio::io::AsyncWriteExt;

use crate::memory::{pair, quiet, run};

/// The first byte says what is looked for and in which pieces the rest comes. However it comes, the verdict is the same, and what the inspector takes for
/// the server name the handshake takes for it too: filter chains are chosen by the one, certificates by the other.
pub fn client_hello(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let (tls, http) = (mode & 1 == 0, mode & 2 == 0);
    run(async {
        let whole = inspect(bytes, bytes.len(), tls, http).await;
        for step in [1, usize::from(mode >> 2) + 2] {
            // Every byte is a turn of the runtime.
            if bytes.len() / step < 20_000 {
                assert_eq!(inspect(bytes, step, tls, http).await, whole, "pieces of {step} bytes");
            }
        }
        let name = server_name(bytes).await;
        if let (true, Verdict::Found(Findings { server_name: inspected, .. })) = (tls, &whole)
            && let Some(name) = name
            && !inspected.is_empty()
        {
            assert_eq!(**inspected, *name);
        }
    });
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Found(Findings),
    Closed,
    TooLarge,
    Failed,
}

async fn inspect(bytes: &[u8], step: usize, tls: bool, http: bool) -> Verdict {
    let (mut near, far) = pair();
    let talk = async {
        for piece in bytes.chunks(step.max(1)) {
            if near.write_all(piece).await.is_err() {
                break;
            }
            if step < bytes.len() {
                quiet().await;
            }
        }
        drop(near);
    };
    match tokio::join!(fuzzing::inspect(far, tls, http), talk).0 {
        Ok(findings) => Verdict::Found(findings),
        Err(InspectError::Closed) => Verdict::Closed,
        Err(InspectError::TooLarge) => Verdict::TooLarge,
        Err(InspectError::Io(_) | InspectError::ProxyProtocol) => Verdict::Failed,
    }
}

async fn server_name(bytes: &[u8]) -> Option<String> {
    let (mut near, far) = pair();
    let talk = async {
        let _ = near.write_all(bytes).await;
        drop(near);
    };
    tokio::join!(fuzzing::server_name(far), talk).0.ok().flatten()
}
