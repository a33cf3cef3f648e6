//! Connections that leave HTTP: WebSocket and other upgrades become a copy of bytes both ways.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::tcp::copy::both_ways;

/// Whether an upgrade may happen: the route's word counts, then the connection manager's; without one it may not.
pub fn allowed(kind: &str, manager: &[(Box<str>, bool)], route: &[(Box<str>, bool)]) -> bool {
    let said = |upgrades: &[(Box<str>, bool)]| {
        upgrades.iter().find(|(name, _)| name.eq_ignore_ascii_case(kind)).map(|(_, on)| *on)
    };
    said(route).or_else(|| said(manager)).unwrap_or(false)
}

/// Copies bytes between the two connections once both have left HTTP. The exchange lives as long as the copy, and the downstream connection waits for it.
pub fn splice(client: OnUpgrade, server: OnUpgrade, mut exchange: Box<Exchange>, idle: Option<Duration>) {
    exchange.manager.stats.downstream_cx_upgrades_total().inc();
    exchange.manager.stats.downstream_cx_upgrades_active().inc();
    let connection = exchange.connection.clone();
    let task = tokio::spawn(async move {
        if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
            let copied = both_ways(TokioIo::new(client), TokioIo::new(server), idle, &exchange.connection.drain).await;
            exchange.bytes_sent = copied.to_downstream;
        }
        exchange.manager.stats.downstream_cx_upgrades_active().dec();
        exchange.complete();
    });
    *connection.upgrade.lock() = Some(task);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_overrides_the_connection_manager() {
        let on: [(Box<str>, bool); 1] = [("websocket".into(), true)];
        let off: [(Box<str>, bool); 1] = [("WebSocket".into(), false)];
        assert!(!allowed("websocket", &[], &[]));
        assert!(allowed("websocket", &on, &[]));
        assert!(!allowed("websocket", &on, &off));
        assert!(allowed("websocket", &off, &on));
        assert!(!allowed("other", &on, &on));
    }
}
