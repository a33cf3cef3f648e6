//! `filters.http.compressor.v3.Compressor` with gzip.

use shika_data::{
    model::http_filter::{Compressor as Model, CompressorOverride},
    stats::CompressorStats,
};
use shika_proto::{
    any,
    envoy::{
        config::core::v3::{RuntimeFeatureFlag, TypedExtensionConfig},
        extensions::{
            compression::gzip::compressor::v3::Gzip,
            filters::http::compressor::v3::{Compressor, CompressorPerRoute, compressor_per_route::Override},
        },
    },
};

use super::super::{Compiled, Context, Fault, Within, flag, required, unpack, wrapped};

/// Media types that are compressed unless the filter lists its own.
///
/// Source: Envoy "Compressor".
const CONTENT_TYPES: [&str; 20] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];

/// A filter's.
pub(crate) fn http(context: &Context<'_>, from: &Compressor, stat_prefix: &str) -> Compiled<Model> {
    let library = required(&from.compressor_library, "compressor_library")?;
    let level = gzip(library).within("compressor_library")?;
    let Some(response) = &from.response_direction_config else {
        return Err(Fault::new(
            "response_direction_config",
            "must be set, if only to {}: the older fields in its place are not supported",
        ));
    };
    let common = response.common_config.clone().unwrap_or_default();
    let mut content_types: Vec<Box<str>> =
        common.content_type.iter().map(|kind| kind.to_ascii_lowercase().into()).collect();
    if content_types.is_empty() {
        content_types = CONTENT_TYPES.iter().map(|kind| (*kind).into()).collect();
    }
    let mut uncompressible = Vec::with_capacity(response.uncompressible_response_codes.len());
    for (index, code) in response.uncompressible_response_codes.iter().enumerate() {
        let code = u16::try_from(*code).ok().filter(|code| (200..600).contains(code)).ok_or_else(|| {
            Fault::new(
                format!("response_direction_config.uncompressible_response_codes[{index}]"),
                format!("value must be inside range [200, 600), not {code}"),
            )
        });
        uncompressible.push(code?);
    }
    let scope = super::scope(stat_prefix, &format!("compressor.{}.gzip.", library.name));
    Ok(Model {
        stats: CompressorStats::new(context.registry, scope),
        enabled: enabled(&common.enabled)
            .within("enabled")
            .within("common_config")
            .within("response_direction_config")?,
        // Zero is as good as unset.
        min_content_length: wrapped(&common.min_content_length).filter(|length| *length > 0).map_or(30, u64::from),
        content_types,
        disable_on_etag: response.disable_on_etag_header,
        weaken_etag: response.weaken_etag_on_compress,
        remove_accept_encoding: response.remove_accept_encoding_header,
        uncompressible,
        level,
        choose_first: from.choose_first,
    })
}

fn enabled(from: &Option<RuntimeFeatureFlag>) -> Compiled<bool> {
    match from {
        None => Ok(true),
        Some(enabled) => {
            required(&enabled.default_value, "default_value")?;
            Ok(flag(&enabled.default_value, true))
        }
    }
}

/// The level of a gzip library, in zlib's terms.
fn gzip(from: &TypedExtensionConfig) -> Compiled<u32> {
    let content = required(&from.typed_config, "typed_config")?;
    if !any::is::<Gzip>(content) {
        return Err(Fault::new("typed_config", format!("{} is not supported; gzip is", content.type_url)));
    }
    let gzip: Gzip = unpack(content).within("typed_config")?;
    match u32::try_from(gzip.compression_level) {
        Ok(0) => Ok(6),
        Ok(level @ 1..=9) => Ok(level),
        _ => Err(Fault::new(
            "typed_config.compression_level",
            format!("value must be one of the defined enum values, not {}", gzip.compression_level),
        )),
    }
}

/// A route's.
pub(crate) fn per_route(from: &CompressorPerRoute) -> Compiled<CompressorOverride> {
    match &from.r#override {
        Some(Override::Disabled(true)) => Ok(CompressorOverride { enabled: Some(false), remove_accept_encoding: None }),
        Some(Override::Disabled(false)) => Err(Fault::new("disabled", "value must equal true")),
        Some(Override::Overrides(overrides)) => {
            let response = overrides.response_direction_config.as_ref();
            Ok(CompressorOverride {
                enabled: response.map(|_| true),
                remove_accept_encoding: response
                    .and_then(|response| response.remove_accept_encoding_header.as_ref())
                    .map(|remove| remove.value),
            })
        }
        None => Err(Fault::new("override", "value is required")),
    }
}
