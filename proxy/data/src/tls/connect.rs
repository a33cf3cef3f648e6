//! The client's side of a handshake.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{accept::explain, sni};
use crate::{
    error::ConnectError,
    io::{Socket, UpstreamIo},
    model::{
        cluster::Endpoint,
        tls::{ClientContext, ClientTls},
    },
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
        tls.stats.context_not_ready().inc();
        return Err(ConnectError::SecretMissing);
    };
    let offers = match alpn {
        AlpnChoice::Configured => None,
        AlpnChoice::Fallback(_) if !context.config.alpn_protocols.is_empty() => None,
        AlpnChoice::Offer(offers) | AlpnChoice::Fallback(offers) => {
            Some(offers.iter().map(|offer| offer.to_vec()).collect())
        }
    };
    match handshake(&context, offers, socket).await {
        Ok(stream) => {
            tls.stats.handshake().inc();
            if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                tls.stats.session_reused().inc();
            }
            Ok(UpstreamIo::Tls(Box::new(stream)))
        }
        Err(error) => {
            let sni = match &context.sni {
                Some(name) => sni::shown(&name.to_str()).into_owned(),
                None => "none".into(),
            };
            let reason = explain(&tls.stats, &error);
            Err(ConnectError::Tls { reason: format!("peer {}, SNI {sni}: {reason}", endpoint.address) })
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
) -> io::Result<TlsStream<IO>> {
    // Without SNI the library still wants a name to file sessions under; an IP address is never sent.
    let name = context.sni.clone().unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()));
    // A name that the library does not send is put into the ClientHello on its way.
    let stand_in = sni::is_stand_in(&name);
    let mut hello = Vec::new();
    let take = |session: &mut ClientConnection| {
        while stand_in && session.wants_write() && session.write_tls(&mut hello).is_ok() {}
    };
    let connector = TlsConnector::from(context.config.clone());
    let mut connecting = match alpn {
        None => connector.connect_with(name, io, take),
        Some(offers) => connector.with_alpn(offers).connect_with(name, io, take),
    };
    if let Some(io) = connecting.get_mut().filter(|_| stand_in) {
        io.write_all(&sni::outgoing(hello)).await?;
    }
    connecting.await
}
