//! What can go wrong on the path: what it is, whose fault, and whether another try makes sense.

use std::fmt;

/// Envoy's response flags, by short name.
///
/// Source: Envoy "Access logging: `%RESPONSE_FLAGS%`".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ResponseFlag {
    /// `UH`: no healthy upstream host.
    NoHealthyUpstream,
    /// `UF`: connecting to the upstream failed.
    UpstreamConnectionFailure,
    /// `UO`: circuit breaker.
    UpstreamOverflow,
    /// `NR`: no route, or no filter chain.
    NoRoute,
    /// `DI`: the fault filter delayed it.
    DelayInjected,
    /// `FI`: the fault filter aborted it.
    FaultInjected,
    /// `RL`: a rate limit refused it.
    RateLimited,
    /// `NC`: cluster not found.
    NoCluster,
    /// `URX`: retries or connect attempts used up.
    UpstreamRetryLimitExceeded,
    /// `DC`: the downstream closed.
    DownstreamConnectionTermination,
    /// `LR`: reset from here.
    LocalReset,
    /// `UR`: reset by the upstream.
    UpstreamRemoteReset,
    /// `UC`: the upstream closed.
    UpstreamConnectionTermination,
    /// `UT`: upstream timeout.
    UpstreamRequestTimeout,
    /// `SI`: stream idle timeout.
    StreamIdleTimeout,
    /// `DPE`: the downstream broke the protocol.
    DownstreamProtocolError,
    /// `UPE`: the upstream broke the protocol.
    UpstreamProtocolError,
    /// `UMSDR`: maximum stream duration reached.
    UpstreamMaxStreamDuration,
    /// `DT`: the connection or request lived too long.
    DurationTimeout,
    /// `IH`: a header was not acceptable.
    InvalidHeader,
    /// `UAEX`: not authorised by an external service (RBAC sets none).
    Unauthorized,
    /// `OM`: overload manager.
    OverloadManager,
    /// `DR`: reset by the downstream.
    DownstreamRemoteReset,
    /// `LH`: a health check that is answered here found too little health.
    FailedLocalHealthCheck,
    /// `RLSE`: a rate limit service gave no answer.
    RateLimitServiceError,
}

impl ResponseFlag {
    /// As in `%RESPONSE_FLAGS%`.
    pub fn short(self) -> &'static str {
        self.names().0
    }

    /// As in `%RESPONSE_FLAGS_LONG%`.
    pub fn long(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::NoHealthyUpstream => ("UH", "NoHealthyUpstream"),
            Self::UpstreamConnectionFailure => ("UF", "UpstreamConnectionFailure"),
            Self::UpstreamOverflow => ("UO", "UpstreamOverflow"),
            Self::NoRoute => ("NR", "NoRouteFound"),
            Self::DelayInjected => ("DI", "DelayInjected"),
            Self::FaultInjected => ("FI", "FaultInjected"),
            Self::RateLimited => ("RL", "RateLimited"),
            Self::NoCluster => ("NC", "NoClusterFound"),
            Self::UpstreamRetryLimitExceeded => ("URX", "UpstreamRetryLimitExceeded"),
            Self::DownstreamConnectionTermination => ("DC", "DownstreamConnectionTermination"),
            Self::LocalReset => ("LR", "LocalReset"),
            Self::UpstreamRemoteReset => ("UR", "UpstreamRemoteReset"),
            Self::UpstreamConnectionTermination => ("UC", "UpstreamConnectionTermination"),
            Self::UpstreamRequestTimeout => ("UT", "UpstreamRequestTimeout"),
            Self::StreamIdleTimeout => ("SI", "StreamIdleTimeout"),
            Self::DownstreamProtocolError => ("DPE", "DownstreamProtocolError"),
            Self::UpstreamProtocolError => ("UPE", "UpstreamProtocolError"),
            Self::UpstreamMaxStreamDuration => ("UMSDR", "UpstreamMaxStreamDurationReached"),
            Self::DurationTimeout => ("DT", "DurationTimeout"),
            Self::InvalidHeader => ("IH", "InvalidEnvoyRequestHeaders"),
            Self::Unauthorized => ("UAEX", "UnauthorizedExternalService"),
            Self::OverloadManager => ("OM", "OverloadManagerTerminated"),
            Self::DownstreamRemoteReset => ("DR", "DownstreamRemoteReset"),
            Self::FailedLocalHealthCheck => ("LH", "FailedLocalHealthCheck"),
            Self::RateLimitServiceError => ("RLSE", "RateLimitServiceError"),
        }
    }
}

/// A set of response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// Adds one.
    pub fn set(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u8;
    }

    /// Whether it is there.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// Whether none is there.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All that are there, in Envoy's order.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        use ResponseFlag::*;
        [
            FailedLocalHealthCheck,
            NoHealthyUpstream,
            UpstreamConnectionFailure,
            UpstreamOverflow,
            NoRoute,
            DelayInjected,
            FaultInjected,
            RateLimited,
            NoCluster,
            UpstreamRetryLimitExceeded,
            DownstreamConnectionTermination,
            LocalReset,
            UpstreamRemoteReset,
            UpstreamConnectionTermination,
            UpstreamRequestTimeout,
            StreamIdleTimeout,
            DownstreamProtocolError,
            UpstreamProtocolError,
            UpstreamMaxStreamDuration,
            DurationTimeout,
            InvalidHeader,
            Unauthorized,
            RateLimitServiceError,
            OverloadManager,
            DownstreamRemoteReset,
        ]
        .into_iter()
        .filter(move |flag| self.contains(*flag))
    }
}

/// Why an upstream connection could not be had. The text is Envoy's transport failure reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// `connect_timeout` passed, for TCP and TLS together.
    Timeout,
    /// The kernel refused: `delayed connect error: Connection refused` and the like.
    Refused {
        /// `errno` as text.
        reason: String,
    },
    /// The TLS handshake failed.
    Tls {
        /// Reason with peer, SNI and what was expected and presented.
        reason: String,
    },
    /// A secret has not arrived.
    SecretMissing,
    /// Our own side: out of descriptors or ports.
    Local {
        /// `errno` as text.
        reason: String,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("connection timeout"),
            Self::Refused { reason } | Self::Local { reason } => write!(f, "delayed connect error: {reason}"),
            Self::Tls { reason } => write!(f, "TLS_error: {reason}"),
            Self::SecretMissing => f.write_str("TLS error: Secret is not supplied by SDS"),
        }
    }
}

impl std::error::Error for ConnectError {}
