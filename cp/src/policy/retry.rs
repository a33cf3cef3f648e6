//! MeshRetry: what is tried again.

use super::rules::Policy;
use crate::mesh::Protocol;
use crate::resource::{GrpcRetry, HttpRetry, MeshRetry, Retry, RuleMatch, TargetRef};

impl Policy for MeshRetry {
    type Conf = Retry;

    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<(&TargetRef, &Retry)> {
        self.to.iter().map(|item| (&item.target_ref, &item.default)).collect()
    }

    fn inbound(&self) -> Vec<(&[RuleMatch], &Retry)> {
        Vec::new()
    }
}

/// What of the requests of a route is tried again. At least one retry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RetryPolicy {
    /// Requests.
    Http(HttpRetry),
    /// gRPC calls.
    Grpc(GrpcRetry),
}

impl RetryPolicy {
    /// The retries for a protocol. As in Kuma there are none for HTTP/2 that is not gRPC, and none where `numRetries` is 0.
    pub fn of(conf: &Retry, protocol: Protocol) -> Option<RetryPolicy> {
        match protocol {
            Protocol::Http => conf.http.clone().filter(|http| http.num_retries != Some(0)).map(RetryPolicy::Http),
            Protocol::Grpc => conf.grpc.clone().filter(|grpc| grpc.num_retries != Some(0)).map(RetryPolicy::Grpc),
            Protocol::Http2 | Protocol::Tcp => None,
        }
    }
}
