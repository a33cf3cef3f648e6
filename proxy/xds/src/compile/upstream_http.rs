//! `core.v3.HttpProtocolOptions`, `Http1ProtocolOptions`, `Http2ProtocolOptions` and `upstreams.http.v3.HttpProtocolOptions`.

use std::time::Duration;

use shika_data::model::{cluster::UpstreamProtocol, http::Http2Options};
use shika_proto::envoy::{
    config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions},
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};

use super::{Compiled, Fault, Within, bound, flag, positive, wrapped};

/// How a cluster's HTTP connections behave.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What is spoken.
    pub protocol: UpstreamProtocol,
    /// HTTP/2 codec.
    pub http2: Http2Options,
    /// Unused pooled connection.
    pub idle_timeout: Option<Duration>,
    /// Life of a pooled connection.
    pub max_connection: Option<Duration>,
    /// Life of a request.
    pub max_stream: Option<Duration>,
    /// Requests per connection.
    pub max_requests_per_connection: Option<u32>,
}

/// Envoy's default idle timeout of pooled connections.
const IDLE: Duration = Duration::from_secs(3_600);

impl Default for Options {
    fn default() -> Self {
        Options {
            protocol: UpstreamProtocol::Http1,
            http2: Http2Options::default(),
            idle_timeout: Some(IDLE),
            max_connection: None,
            max_stream: None,
            max_requests_per_connection: None,
        }
    }
}

/// `upstreams.http.v3.HttpProtocolOptions`
pub(crate) fn typed(from: &HttpProtocolOptions) -> Compiled<Options> {
    let mut options = Options::default();
    if let Some(common) = &from.common_http_protocol_options {
        self::common(&mut options, common).within("common_http_protocol_options")?;
    }
    match &from.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => (|| {
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    upstream_http1(http1).within("http_protocol_options")?
                }
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    options.protocol = UpstreamProtocol::Http2;
                    options.http2 = self::http2(http2).within("http2_protocol_options")?;
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return Err(Fault::new("http3_protocol_options", "HTTP/3 is not supported"));
                }
                None => return Err(Fault::new("protocol_config", "value is required")),
            }
            Ok(())
        })()
        .within("explicit_http_config")?,
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            options.protocol = UpstreamProtocol::Downstream;
            alternatives(
                &mut options,
                &config.http_protocol_options,
                &config.http2_protocol_options,
                config.http3_protocol_options.is_some(),
            )
            .within("use_downstream_protocol_config")?;
        }
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            options.protocol = UpstreamProtocol::Auto;
            alternatives(
                &mut options,
                &config.http_protocol_options,
                &config.http2_protocol_options,
                config.http3_protocol_options.is_some(),
            )
            .within("auto_config")?;
        }
        None => return Err(Fault::new("upstream_protocol_options", "value is required")),
    }
    Ok(options)
}

fn alternatives(
    options: &mut Options,
    http1: &Option<Http1ProtocolOptions>,
    http2: &Option<Http2ProtocolOptions>,
    http3: bool,
) -> Compiled<()> {
    if http3 {
        return Err(Fault::new("http3_protocol_options", "HTTP/3 is not supported"));
    }
    if let Some(http1) = http1 {
        upstream_http1(http1).within("http_protocol_options")?;
    }
    if let Some(http2) = http2 {
        options.http2 = self::http2(http2).within("http2_protocol_options")?;
    }
    Ok(())
}

/// `common_http_protocol_options` of a cluster.
pub(crate) fn common(options: &mut Options, from: &CommonOptions) -> Compiled<()> {
    options.idle_timeout = bound(&from.idle_timeout, "idle_timeout", Some(IDLE))?;
    options.max_connection = bound(&from.max_connection_duration, "max_connection_duration", None)?;
    options.max_stream = bound(&from.max_stream_duration, "max_stream_duration", None)?;
    options.max_requests_per_connection = wrapped(&from.max_requests_per_connection).filter(|most| *most > 0);
    Ok(())
}

/// HTTP/1 options of a cluster: those that would change what is sent are refused.
pub(crate) fn upstream_http1(from: &Http1ProtocolOptions) -> Compiled<()> {
    if from.enable_trailers {
        return Err(Fault::new("enable_trailers", "trailers towards HTTP/1 upstreams are not supported"));
    }
    Ok(())
}

/// HTTP/2 options of either side.
pub(crate) fn http2(from: &Http2ProtocolOptions) -> Compiled<Http2Options> {
    const WINDOW: std::ops::RangeInclusive<u32> = 65_535..=2_147_483_647;
    let window = |value: Option<u32>, field: &str| match value {
        Some(size) if !WINDOW.contains(&size) => {
            Err(Fault::new(field, format!("value must be inside range [65535, 2147483647], not {size}")))
        }
        other => Ok(other),
    };
    let max_concurrent_streams = wrapped(&from.max_concurrent_streams);
    if max_concurrent_streams.is_some_and(|streams| !(1..=2_147_483_647).contains(&streams)) {
        return Err(Fault::new("max_concurrent_streams", "value must be inside range [1, 2147483647]"));
    }
    let (mut keepalive_interval, mut keepalive_timeout) = (None, None);
    if let Some(keepalive) = &from.connection_keepalive {
        keepalive_interval = positive(&keepalive.interval, "interval").within("connection_keepalive")?;
        keepalive_timeout = positive(&keepalive.timeout, "timeout").within("connection_keepalive")?;
        if keepalive_timeout.is_none() {
            return Err(Fault::new("connection_keepalive.timeout", "value is required"));
        }
    }
    if flag(&from.override_stream_error_on_invalid_http_message, false) {
        return Err(Fault::new("override_stream_error_on_invalid_http_message", "is not supported"));
    }
    Ok(Http2Options {
        max_concurrent_streams,
        initial_stream_window: window(wrapped(&from.initial_stream_window_size), "initial_stream_window_size")?,
        initial_connection_window: window(
            wrapped(&from.initial_connection_window_size),
            "initial_connection_window_size",
        )?,
        allow_connect: from.allow_connect,
        keepalive_interval,
        keepalive_timeout,
    })
}
