//! `filters.network.local_ratelimit.v3.LocalRateLimit` and `filters.network.set_filter_state.v3.Config`.

use shika_data::{
    model::{
        access_log::LogFormat,
        listener::{ConnectionRateLimit, FilterStateRule, SetFilterState},
    },
    stats::{LocalRateLimitStats, Scope},
};
use shika_proto::envoy::extensions::filters::{
    common::set_filter_state::v3::{
        FilterStateValue,
        filter_state_value::{Key, SharedWithUpstream, Value},
    },
    network::{local_ratelimit::v3::LocalRateLimit, set_filter_state::v3::Config},
};

use super::{
    super::{Compiled, Context, Fault, Within, enumeration, flag, format, non_empty, required},
    local_ratelimit,
};

/// The factory of plain texts.
const STRING: &str = "envoy.string";

/// A limit on new connections.
pub(crate) fn local_rate_limit(context: &Context<'_>, from: &LocalRateLimit) -> Compiled<ConnectionRateLimit> {
    let prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let scope = Scope {
        prefix: format!("local_rate_limit.{prefix}."),
        stem: "local_rate_limit.".into(),
        tags: vec![("envoy.local_network_ratelimit_prefix", prefix.to_owned())],
    };
    let bucket = required(&from.token_bucket, "token_bucket")
        .and_then(|bucket| local_ratelimit::bucket(bucket).within("token_bucket"))?;
    if let Some(enabled) = &from.runtime_enabled
        && !flag(&enabled.default_value, true)
    {
        return Err(Fault::new("runtime_enabled", "false is not supported; leave the filter out"));
    }
    Ok(ConnectionRateLimit { stats: LocalRateLimitStats::new(context.registry, scope), bucket })
}

/// What is kept of connections.
pub(crate) fn set_filter_state(context: &Context<'_>, from: &Config) -> Compiled<SetFilterState> {
    let rules = |from: &[FilterStateValue], field: &str| {
        from.iter().enumerate().map(|(index, one)| rule(context, one).at(field, index)).collect::<Compiled<Vec<_>>>()
    };
    Ok(SetFilterState {
        on_connection: rules(&from.on_new_connection, "on_new_connection")?,
        on_handshake: rules(&from.on_downstream_tls_handshake, "on_downstream_tls_handshake")?,
    })
}

fn rule(context: &Context<'_>, from: &FilterStateValue) -> Compiled<FilterStateRule> {
    let key = match &from.key {
        Some(Key::ObjectKey(key)) => non_empty(key, "object_key")?,
        None => return Err(Fault::new("key", "value is required")),
    };
    let factory = if from.factory_key.is_empty() { key } else { &from.factory_key };
    if factory != STRING {
        return Err(Fault::new("factory_key", format!("{factory:?} is not supported; {STRING} is")));
    }
    if enumeration::<SharedWithUpstream>(from.shared_with_upstream, "shared_with_upstream")? != SharedWithUpstream::None
    {
        return Err(Fault::new("shared_with_upstream", "is not supported: upstream connections have no filter state"));
    }
    let value = match &from.value {
        Some(Value::FormatString(value)) => match format::substitution(context, value).within("format_string")? {
            LogFormat::Text(value) => value,
            LogFormat::Json(_) => {
                return Err(Fault::new("format_string.json_format", "is not supported; use text_format_source"));
            }
        },
        None => return Err(Fault::new("value", "value is required")),
    };
    Ok(FilterStateRule { key: key.into(), value, read_only: from.read_only, skip_if_empty: from.skip_if_empty })
}
