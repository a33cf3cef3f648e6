//! UDP listeners: datagrams are answered from a table of names, or read and dropped.

mod dns;

use std::{io, time::Duration};

use tokio::{net::UdpSocket, time::Instant};

use crate::{model::ListenerId, worker};

/// Longest datagram that is taken, bytes; a longer one is dropped and counted. Envoy's default of `max_rx_datagram_size`.
const LONGEST: usize = 1500;

/// Before the next try when the socket cannot be read.
const BACK_OFF: Duration = Duration::from_millis(20);

/// Serves one socket on one worker until the task is aborted. Each datagram reads the configuration once.
pub(crate) async fn serve(socket: UdpSocket, id: ListenerId) {
    // One byte more, so that a datagram which is cut is seen to be.
    let mut buffer = [0; LONGEST + 1];
    loop {
        let received = socket.recv_from(&mut buffer).await;
        let begun = Instant::now();
        let snapshot = worker::snapshot();
        let datagrams = snapshot.listener(id).and_then(|listener| listener.datagrams.as_ref());
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                if let Some(table) = datagrams.and_then(|datagrams| datagrams.dns.as_ref()) {
                    table.stats.downstream_rx_errors().inc();
                }
                tracing::debug!(listener = id.0, %error, "cannot read a datagram");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        // The listener is gone, and this task with it in a moment.
        let Some(datagrams) = datagrams else { continue };
        let Some(datagram) = buffer.get(..length).filter(|datagram| datagram.len() <= LONGEST) else {
            datagrams.stats.downstream_rx_datagram_dropped().inc();
            continue;
        };
        let Some(table) = &datagrams.dns else { continue };
        let Some(reply) = dns::answer(table, datagram, worker::random()) else { continue };
        table.stats.downstream_rx_query_latency().record(begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
        // UDP may lose it anyway: what does not fit into the socket's buffer now is not waited for.
        match socket.try_send_to(&reply, from) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::debug!(listener = id.0, %from, %error, "cannot send an answer");
            }
            _ => {}
        }
    }
}
