//! The server's side of a handshake.

use std::{io, net::SocketAddr, sync::OnceLock};

use bytes::Bytes;
use rustls::{HandshakeKind, server::Acceptor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    FailureKind, VerifyFailure, cipher_name, group_name, hello::HANDSHAKE, info, scheme_name, session, sni as names,
    version_name,
};
use crate::{
    connection::PeerTls,
    io::{Ahead, Inspected},
    model::tls::{ServerContext, ServerTls},
    record,
    stats::SslStats,
};

/// A handshake that was carried through.
#[derive(Debug)]
pub struct Accepted {
    /// The session.
    pub stream: Box<TlsStream<Ahead<Inspected>>>,
    /// What the peer showed.
    pub peer: PeerTls,
    /// Requested server name in lower case, empty without one.
    pub sni: Box<str>,
    /// What ALPN settled on.
    pub alpn: Option<Box<[u8]>>,
}

/// A handshake that failed. It has been counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The secret has not arrived.
    #[error("Secret is not supplied by SDS")]
    NotReady,
    /// What went wrong: peer, SNI, reason.
    #[error("TLS_error: {0}")]
    Failed(String),
    /// The peer's certificate is not accepted, or missing: peer, SNI, expected and presented names, reason.
    #[error("TLS_error: {0}")]
    Refused(String),
}

/// Accepts a TLS session. Counts `ssl.*`; the caller bounds the time.
pub async fn accept(tls: &ServerTls, io: Inspected, peer: Option<SocketAddr>) -> Result<Accepted, AcceptError> {
    let Some(context) = tls.context.load_full() else {
        tls.factory.downstream_secrets_not_ready().inc();
        return Err(AcceptError::NotReady);
    };
    let mut sni = String::new();
    // Boxed here: some kilobytes, which every layer around it would move.
    let (result, course) = session::observed(Box::pin(handshake(&context, io, &mut sni))).await;
    let stream = match result {
        Ok(stream) => Box::new(stream),
        Err(error) => {
            let peer = peer.map_or_else(|| "a unix socket".to_owned(), |peer| peer.to_string());
            let sni = if sni.is_empty() { "none" } else { &sni };
            let reason = format!("peer {peer}, SNI {sni}: {}", explain(&tls.stats, &error));
            let reason = record::printable(&reason).into_owned();
            return Err(if is_refusal(&error) { AcceptError::Refused(reason) } else { AcceptError::Failed(reason) });
        }
    };
    let (_, session) = stream.get_ref();
    tls.stats.handshake().inc();
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    if resumed {
        tls.stats.session_reused().inc();
    }
    let version = session.protocol_version().map_or("UNKNOWN", version_name);
    let cipher = session.negotiated_cipher_suite().map_or("UNKNOWN", |suite| cipher_name(suite.suite()));
    let group = session.negotiated_key_exchange_group().map(|group| group.name()).or(course.earlier_group());
    tls.stats.agreed_on(version, cipher, group.and_then(group_name), course.scheme().and_then(scheme_name));
    let chain: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
    if chain.is_empty() {
        tls.stats.no_certificate().inc();
    }
    let names = match chain.first().map(info::peer_names).transpose() {
        Ok(names) => names,
        Err(error) => {
            // Without trust anchors nothing had read the certificate until now.
            tls.stats.connection_error().inc();
            return Err(AcceptError::Failed(record::printable(&error.to_string()).into_owned()));
        }
    };
    let peer = PeerTls {
        told: OnceLock::new(),
        names,
        fingerprint: chain.first().map(info::fingerprint),
        chain,
        own_uri: context.own_uri.clone(),
        version,
        cipher,
        resumed,
    };
    let alpn = session.alpn_protocol().map(Into::into);
    Ok(Accepted { peer, alpn, sni: sni.into(), stream })
}

async fn handshake(
    context: &ServerContext,
    mut io: Inspected,
    sni: &mut String,
) -> io::Result<TlsStream<Ahead<Inspected>>> {
    // What is plain text gets no alert, as with Envoy: it could not read one.
    if io.head.is_empty() {
        let mut first = [0; 1024];
        let read = io.socket.read(&mut first).await?;
        io.head = Bytes::copy_from_slice(first.get(..read).unwrap_or_default());
    }
    match io.head.first() {
        Some(&HANDSHAKE) => {}
        Some(_) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
            ));
        }
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let asked = names::incoming(&mut io).await?;
    if let Some(asked) = &asked {
        sni.clone_from(&asked.name);
    }
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(io));
    tokio::pin!(acceptor);
    let start = match acceptor.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            // The alert has been written; say goodbye properly so that it is not lost to a reset.
            if let Some(mut io) = acceptor.take_io() {
                let _ = io.shutdown().await;
            }
            return Err(error);
        }
    };
    let hello = start.client_hello();
    match asked {
        Some(asked) if asked.is_seen_as(hello.server_name()) => {}
        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the server name can be read in two ways")),
        None => *sni = hello.server_name().unwrap_or_default().to_ascii_lowercase(),
    }
    let ours = &context.config.alpn_protocols;
    let disjoint = match hello.alpn() {
        Some(mut offers) => !offers.any(|offer| ours.iter().any(|own| own == offer)),
        None => false,
    };
    let config = if disjoint { &context.config_without_alpn } else { &context.config };
    start.into_stream(config.clone()).await
}

/// Whether it was we who refused the peer, for its certificate.
fn is_refusal(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

/// Counts a failed handshake and says why it failed. As in Envoy a certificate that is refused, or missing, is no `connection_error` beside.
pub(super) fn explain(stats: &SslStats, error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        stats.connection_error().inc();
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer closed the connection during the handshake".into(),
            _ => error.to_string(),
        };
    };
    if let Some(failure) = VerifyFailure::find(tls) {
        match failure.kind {
            FailureKind::Chain => stats.fail_verify_error().inc(),
            FailureKind::San => stats.fail_verify_san().inc(),
            FailureKind::Hash => stats.fail_verify_cert_hash().inc(),
        }
        // OpenSSL's word, which people search logs for.
        return format!("CERTIFICATE_VERIFY_FAILED: {}", failure.reason);
    }
    if let rustls::Error::NoCertificatesPresented = tls {
        stats.fail_verify_no_cert().inc();
    } else {
        stats.connection_error().inc();
    }
    match tls {
        rustls::Error::NoCertificatesPresented => "the peer showed no certificate, and one is required".into(),
        rustls::Error::AlertReceived(alert) => format!("the peer ended the handshake with alert {alert:?}"),
        rustls::Error::InvalidMessage(message) => format!("what the peer sent is not TLS ({message:?})"),
        other => other.to_string(),
    }
}
