//! TCP client: sends a message and waits until the same bytes are back.

use std::sync::Arc;

use super::http1::Connection;
use super::{Failure, Plan};

/// One lane's client.
pub struct Client {
    plan: Arc<Plan>,
    message: Vec<u8>,
    connection: Option<Connection>,
}

impl Client {
    /// Prepares the message of the plan.
    pub fn new(plan: &Arc<Plan>) -> Self {
        Self { plan: plan.clone(), message: vec![b'x'; plan.payload.max(1)], connection: None }
    }

    /// One round trip. A connection that failed is not used again.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.plan.target).await?,
        };
        connection.echo(&self.message).await?;
        if !self.plan.new_connection {
            self.connection = Some(connection);
        }
        Ok(())
    }
}
