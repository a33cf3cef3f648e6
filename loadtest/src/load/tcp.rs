//! TCP client: sends a message and waits until the same bytes are back, or moves many bytes one way. WebSocket is the former after an
//! upgrade: what a proxy does with such a connection does not depend on the frames in it.

use std::sync::Arc;

use super::http1::Connection;
use super::stream::Peer;
use super::{Failure, Plan, Protocol};

/// One lane's client.
pub struct Client {
    plan: Arc<Plan>,
    peer: Peer,
    message: Vec<u8>,
    connection: Option<Connection>,
}

impl Client {
    /// Prepares the message of the plan.
    pub fn new(plan: &Arc<Plan>) -> Self {
        let message = match plan.protocol {
            Protocol::Bulk => bulk_head(plan.payload, plan.reply).to_vec(),
            _ => vec![b'x'; plan.payload.max(1)],
        };
        Self { plan: plan.clone(), peer: plan.target.for_lane(), message, connection: None }
    }

    /// One round trip. A connection that failed is not used again.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.open().await?,
        };
        match self.plan.protocol {
            Protocol::Bulk => connection.transfer(&self.message, self.plan.payload, self.plan.reply).await?,
            _ => connection.echo(&self.message).await?,
        }
        if !self.plan.new_connection {
            self.connection = Some(connection);
        }
        Ok(())
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let plan = &self.plan;
        let mut connection = Connection::open(&self.peer, plan.reply).await?;
        if plan.protocol == Protocol::WebSocket {
            let request = format!(
                "GET /ws HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                plan.host
            );
            connection.upgrade(request.as_bytes()).await?;
        }
        Ok(connection)
    }
}

/// What a bulk transfer begins with: bytes that follow and bytes wanted, each as 8 bytes, the highest first.
pub fn bulk_head(up: usize, down: usize) -> [u8; 16] {
    let mut head = [0; 16];
    let (left, right) = head.split_at_mut(8);
    left.copy_from_slice(&(up as u64).to_be_bytes());
    right.copy_from_slice(&(down as u64).to_be_bytes());
    head
}
