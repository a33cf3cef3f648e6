//! `filters.http.cors.v3.CorsPolicy`.

use http::HeaderValue;
use shika_data::model::{http_filter::CorsPolicy as Model, route::Fraction};
use shika_proto::{envoy::extensions::filters::http::cors::v3::CorsPolicy, google::protobuf::BoolValue};

use super::super::{Compiled, Fault, Within, matcher, required, route};

/// What one level allows.
pub(crate) fn policy(from: &CorsPolicy) -> Compiled<Model> {
    let share = |field: &Option<_>, name: &str, default: u32| match field {
        None => Ok(Fraction { numerator: default, denominator: 100 }),
        Some(share) => {
            let share: &shika_proto::envoy::config::core::v3::RuntimeFractionalPercent = share;
            required(&share.default_value, "default_value")
                .and_then(|value| route::fraction(value).within("default_value"))
                .within(name)
        }
    };
    let origins = &from.allow_origin_string_match;
    Ok(Model {
        origins: origins
            .iter()
            .enumerate()
            .map(|(index, one)| matcher::string(one).at("allow_origin_string_match", index))
            .collect::<Compiled<_>>()?,
        methods: text(&from.allow_methods, "allow_methods")?,
        headers: text(&from.allow_headers, "allow_headers")?,
        expose: text(&from.expose_headers, "expose_headers")?,
        max_age: text(&from.max_age, "max_age")?,
        credentials: said(&from.allow_credentials),
        private_network: said(&from.allow_private_network_access),
        forward_not_matching: said(&from.forward_not_matching_preflights),
        enabled: share(&from.filter_enabled, "filter_enabled", 100)?,
        shadow: share(&from.shadow_enabled, "shadow_enabled", 0)?,
    })
}

fn said(from: &Option<BoolValue>) -> Option<bool> {
    from.as_ref().map(|said| said.value)
}

fn text(from: &str, field: &str) -> Compiled<Option<HeaderValue>> {
    match from {
        "" => Ok(None),
        text => HeaderValue::from_str(text).map(Some).map_err(|_| Fault::new(field, "is not a valid header value")),
    }
}
