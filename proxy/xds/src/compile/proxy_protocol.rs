//! The PROXY protocol of listeners and of clusters.

use shika_data::{
    model::proxy_protocol::{NAMESPACE, PassThrough, ProxyProtocol, TlvRule, UpstreamProxyProtocol},
    proxy_protocol::{self, Accepts, Tlv},
    stats::{
        ProxyProtocolErrorStats, ProxyProtocolStats, ProxyProtocolVersionStats, Scope, UpstreamProxyProtocolStats,
    },
};
use shika_proto::envoy::{
    config::core::v3::{
        ProxyProtocolPassThroughTlVs, TlvEntry, TransportSocket, proxy_protocol_config::Version,
        proxy_protocol_pass_through_tl_vs::PassTlVsMatchType,
    },
    extensions::{
        filters::listener::proxy_protocol::v3::{
            ProxyProtocol as Proto,
            proxy_protocol::{Rule, TlvLocation, key_value_pair::ValueStringEncoding},
        },
        transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport,
    },
};

use super::{Compiled, Context, Fault, Within, enumeration, non_empty, required};

/// `filters.listener.proxy_protocol.v3.ProxyProtocol`
pub(crate) fn downstream(context: &Context<'_>, from: &Proto) -> Compiled<ProxyProtocol> {
    let mut accepts = Accepts { v1: true, v2: true, nothing: from.allow_requests_without_proxy_protocol };
    for (index, version) in from.disallowed_versions.iter().enumerate() {
        match enumeration(*version, &format!("disallowed_versions[{index}]"))? {
            Version::V1 => accepts.v1 = false,
            Version::V2 => accepts.v2 = false,
        }
    }
    if !accepts.v1 && !accepts.v2 {
        return Err(Fault::new(
            "disallowed_versions",
            "Proxy Protocol filter is misconfigured: all proxy protocol versions are disallowed.",
        ));
    }
    if enumeration::<TlvLocation>(from.tlv_location, "tlv_location")? == TlvLocation::FilterState {
        return Err(Fault::new("tlv_location", "FILTER_STATE is not supported; use DYNAMIC_METADATA"));
    }
    let mut rules: Vec<TlvRule> = Vec::with_capacity(from.rules.len());
    for (index, one) in from.rules.iter().enumerate() {
        let rule = rule(one).at("rules", index)?;
        // The last rule for a type counts, as in Envoy.
        rules.retain(|earlier| earlier.kind != rule.kind);
        rules.push(rule);
    }
    let (mut prefix, mut tags) = ("proxy_proto.".to_owned(), Vec::new());
    if !from.stat_prefix.is_empty() {
        prefix = format!("proxy_proto.{}.", from.stat_prefix);
        tags.push(("envoy.proxy_protocol_prefix", from.stat_prefix.clone()));
    }
    let stem = || "proxy_proto.".into();
    let version = |version: &str| {
        let tags = [&tags[..], &[("envoy.proxy_protocol_version", version.to_owned())]].concat();
        let scope = Scope { prefix: format!("{prefix}versions.v{version}."), stem: stem(), tags };
        ProxyProtocolVersionStats::new(context.registry, scope)
    };
    let root = Scope { prefix: String::new(), stem: String::new(), tags: Vec::new() };
    Ok(ProxyProtocol {
        accepts,
        rules,
        pass_through: match &from.pass_through_tlvs {
            None => PassThrough::None,
            Some(from) => pass_through(from).within("pass_through_tlvs")?,
        },
        v1: version("1"),
        v2: version("2"),
        errors: ProxyProtocolErrorStats::new(context.registry, root),
        stats: ProxyProtocolStats::new(
            context.registry,
            Scope { prefix: prefix.clone(), stem: stem(), tags: tags.clone() },
        ),
    })
}

fn rule(from: &Rule) -> Compiled<TlvRule> {
    let kind = kind(from.tlv_type, "tlv_type")?;
    (|| {
        let pair = from.on_tlv_present.as_ref();
        let pair = pair.ok_or_else(|| Fault::new("", "value is required"))?;
        match enumeration(pair.value_string_encoding, "value_string_encoding")? {
            ValueStringEncoding::Unspecified | ValueStringEncoding::SanitizedUtf8 => {}
            ValueStringEncoding::Base64 => {
                return Err(Fault::new("value_string_encoding", "BASE64 is not supported; SANITIZED_UTF8 is"));
            }
        }
        let namespace = match pair.metadata_namespace.as_str() {
            "" => NAMESPACE,
            namespace => namespace,
        };
        Ok(TlvRule { kind, namespace: namespace.into(), key: non_empty(&pair.key, "key")?.into() })
    })()
    .within("on_tlv_present")
}

fn kind(number: u32, field: &str) -> Compiled<u8> {
    u8::try_from(number).map_err(|_| Fault::new(field, format!("value must be less than 256, not {number}")))
}

/// `ProxyProtocolPassThroughTLVs`
fn pass_through(from: &ProxyProtocolPassThroughTlVs) -> Compiled<PassThrough> {
    let kinds = from.tlv_type.iter().enumerate();
    let kinds = kinds.map(|(index, number)| kind(*number, &format!("tlv_type[{index}]"))).collect::<Compiled<_>>()?;
    Ok(match enumeration(from.match_type, "match_type")? {
        PassTlVsMatchType::IncludeAll => PassThrough::All,
        PassTlVsMatchType::Include => PassThrough::These(kinds),
    })
}

/// `transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport`, and the transport socket in it.
pub(crate) fn upstream<'a>(
    context: &Context<'_>,
    from: &'a ProxyProtocolUpstreamTransport,
    cluster: &Scope,
) -> Compiled<(UpstreamProxyProtocol, &'a TransportSocket)> {
    let inner = required(&from.transport_socket, "transport_socket")?;
    let config = from.config.clone().unwrap_or_default();
    let compiled = (|| {
        let version = match enumeration(config.version, "version")? {
            Version::V1 => proxy_protocol::Version::V1,
            Version::V2 => proxy_protocol::Version::V2,
        };
        let pass_through = match &config.pass_through_tlvs {
            None => PassThrough::None,
            Some(from) => pass_through(from).within("pass_through_tlvs")?,
        };
        let added = config.added_tlvs.iter().enumerate();
        let added = added.map(|(index, one)| added_tlv(one).at("added_tlvs", index)).collect::<Compiled<_>>()?;
        let scope = Scope {
            prefix: format!("{}upstream.proxyprotocol.", cluster.prefix),
            stem: format!("{}upstream.proxyprotocol.", cluster.stem),
            tags: cluster.tags.clone(),
        };
        let stats = UpstreamProxyProtocolStats::new(context.registry, scope);
        Ok(UpstreamProxyProtocol { version, pass_through, added, stats })
    })()
    .within("config")?;
    Ok((compiled, inner))
}

fn added_tlv(from: &TlvEntry) -> Compiled<Tlv> {
    Ok(Tlv { kind: kind(from.r#type, "type")?, value: from.value.clone().into() })
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;
