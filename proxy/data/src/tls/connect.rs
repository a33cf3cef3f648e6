//! The client's side of a handshake.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{accept::explain, cipher_name, group_name, outgoing::Outgoing, scheme_name, session, sni, version_name};
use crate::{
    error::ConnectError,
    io::{Ahead, Socket, UpstreamIo},
    model::{
        cluster::Endpoint,
        tls::{ClientContext, ClientTls},
    },
    record,
    upstream::connect::AlpnChoice,
};

/// Makes a TLS session on a connected socket. Counts `ssl.*`; the caller bounds the time.
pub async fn connect(
    tls: &ClientTls,
    socket: Socket,
    endpoint: &Endpoint,
    alpn: AlpnChoice,
) -> Result<UpstreamIo, ConnectError> {
    let Some(context) = tls.context.load_full() else {
        tls.factory.upstream_secrets_not_ready().inc();
        return Err(ConnectError::SecretMissing);
    };
    let offers = match alpn {
        AlpnChoice::Configured => None,
        AlpnChoice::Fallback(_) if !context.config.alpn_protocols.is_empty() => None,
        AlpnChoice::Offer(offers) | AlpnChoice::Fallback(offers) => {
            Some(offers.iter().map(|offer| offer.to_vec()).collect())
        }
    };
    let (result, course) = session::observed(handshake(&context, offers, Ahead::new(socket))).await;
    match result {
        Ok(stream) => {
            tls.stats.handshake().inc();
            let session = stream.get_ref().1;
            if session.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                tls.stats.session_reused().inc();
            }
            let group = session.negotiated_key_exchange_group().map(|group| group.name()).or(course.earlier_group());
            tls.stats.agreed_on(
                session.protocol_version().map_or("", version_name),
                session.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite())),
                group.and_then(group_name),
                course.scheme().and_then(scheme_name),
            );
            Ok(UpstreamIo::Tls(Box::new(stream)))
        }
        Err(error) => {
            let sni = match &context.sni {
                Some(name) => sni::shown(&name.to_str()).into_owned(),
                None => "none".into(),
            };
            let reason = explain(&tls.stats, &error);
            let reason = format!("peer {}, SNI {sni}: {reason}", endpoint.address);
            Err(ConnectError::Tls { reason: record::printable(&reason).into_owned() })
        }
    }
}

/// The handshake alone, without counting. `alpn` takes the place of the context's own offers.
///
/// # Errors
/// The handshake failed; the error holds a [`rustls::Error`] where the peer or the session is to blame.
pub async fn handshake<IO: AsyncRead + AsyncWrite + Unpin>(
    context: &ClientContext,
    alpn: Option<Vec<Vec<u8>>>,
    io: IO,
) -> io::Result<TlsStream<Outgoing<IO>>> {
    // Without SNI the library still wants a name to file sessions under; an IP address is never sent.
    let name = context.sni.clone().unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()));
    let connector = TlsConnector::from(context.config.clone());
    let io = Outgoing::new(io, sni::is_stand_in(&name));
    let mut stream = match alpn {
        None => connector.connect(name, io).await?,
        Some(offers) => connector.with_alpn(offers).connect(name, io).await?,
    };
    stream.get_mut().0.stop_renaming();
    Ok(stream)
}
