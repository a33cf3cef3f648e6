//! `filters.http.lua.v3.Lua`: the one script that Kuma writes, done natively. Any other is refused.

use std::sync::Arc;

use shika_data::stats::LuaStats;
use shika_proto::{
    envoy::{config::core::v3::Metadata, extensions::filters::http::lua::v3::Lua},
    google::protobuf::value::Kind,
};

use super::super::{Compiled, Context, Fault, Within, required, source};

/// Under this name a route's metadata is found, whatever the filter is called.
pub(crate) const NAME: &str = "envoy.filters.http.lua";

/// What the script does: the route's metadata `route_kri` becomes the request's dynamic metadata `kuma.routes`/`route_kri`. Its words, in order.
const SCRIPT: &str = "function envoy_on_request(handle) local meta = handle:metadata():get(\"route_kri\") if meta ~= nil then \
                      handle:streamInfo():dynamicMetadata():set(\"kuma.routes\", \"route_kri\", meta) end end";

/// A filter's statistics, if it has the script.
pub(crate) fn http(context: &Context<'_>, from: &Lua, stat_prefix: &str) -> Compiled<LuaStats> {
    let code = required(&from.default_source_code, "default_source_code")?;
    let code = source::text(code).within("default_source_code")?;
    if !code.split_whitespace().eq(SCRIPT.split_whitespace()) {
        return Err(Fault::new(
            "default_source_code",
            "Lua is not run; only the script that copies route_kri to dynamic metadata is known and done without it",
        ));
    }
    let below = match from.stat_prefix.as_str() {
        "" => "lua.".to_owned(),
        prefix => format!("lua.{prefix}."),
    };
    Ok(LuaStats::new(context.registry, super::scope(stat_prefix, &below)))
}

/// What the script finds in a route's metadata.
pub(crate) fn route_kri(metadata: &Metadata) -> Option<Arc<str>> {
    match metadata.filter_metadata.get(NAME)?.fields.get("route_kri")?.kind.as_ref()? {
        Kind::StringValue(kri) => Some(kri.as_str().into()),
        _ => None,
    }
}
