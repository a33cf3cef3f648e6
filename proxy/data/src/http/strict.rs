//! Control headers that have to parse, where the router is told to look.
//!
//! Source: Envoy `router.v3.Router.strict_check_headers`, `FilterUtility::StrictHeaderChecker`.

use http::HeaderMap;

use crate::model::{http::StrictHeader, retry::RetryOn};

/// The first of these headers that does not parse, with its value.
pub(super) fn broken<'a>(wanted: &[StrictHeader], headers: &'a HeaderMap) -> Option<(&'static str, &'a str)> {
    wanted.iter().find_map(|header| {
        let name = header.name();
        let value = headers.get(name)?;
        // What is no text is no number and no list of names either.
        let text = value.to_str().unwrap_or_default();
        (!holds(*header, text)).then_some((name, text))
    })
}

fn holds(header: StrictHeader, value: &str) -> bool {
    match header {
        StrictHeader::Timeout | StrictHeader::PerTryTimeout | StrictHeader::MaxRetries => value.parse::<u64>().is_ok(),
        StrictHeader::RetryOn => value.split(',').all(|name| RetryOn::is_http(name.trim())),
        StrictHeader::RetryGrpcOn => value.split(',').all(|name| RetryOn::is_grpc(name.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_parse() {
        for (header, value, expected) in [
            (StrictHeader::Timeout, "15", true),
            (StrictHeader::Timeout, "-1", false),
            (StrictHeader::PerTryTimeout, "1.5", false),
            (StrictHeader::MaxRetries, "", false),
            (StrictHeader::MaxRetries, "3", true),
            (StrictHeader::RetryOn, "5xx, reset", true),
            (StrictHeader::RetryOn, "5xx,cancelled", false),
            (StrictHeader::RetryGrpcOn, "cancelled,internal", true),
            (StrictHeader::RetryGrpcOn, "often", false),
        ] {
            assert_eq!(holds(header, value), expected, "{header:?} {value:?}");
        }
    }

    #[test]
    fn only_headers_that_are_named_and_there() {
        let headers: HeaderMap =
            [(http::HeaderName::from_static("x-envoy-max-retries"), http::HeaderValue::from_static("many"))]
                .into_iter()
                .collect();
        assert_eq!(broken(&[StrictHeader::Timeout, StrictHeader::RetryOn], &headers), None);
        assert_eq!(broken(&StrictHeader::ALL, &headers), Some(("x-envoy-max-retries", "many")));
    }
}
