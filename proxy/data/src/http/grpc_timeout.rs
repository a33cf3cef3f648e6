//! `grpc-timeout`, where a route heeds it.
//!
//! Source: gRPC over HTTP/2 (`Timeout`), Envoy `Grpc::Common::getGrpcTimeout`, `ConnectionManagerImpl::ActiveStream::refreshDurationTimeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::route::MaxStreamDuration;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// A number has eight digits at most.
const MOST: u64 = 99_999_999;

/// How long a request may live by its route: what it asks for itself if the route heeds that, else the route's word, else `manager`'s. A gRPC call is told
/// on with that as its deadline.
pub(super) fn stream_duration(
    route: &MaxStreamDuration,
    manager: Option<Duration>,
    headers: &mut HeaderMap,
    grpc: bool,
) -> Option<Duration> {
    let asked = route.grpc_most.and_then(|most| {
        let asked = parse(headers.get(&GRPC_TIMEOUT)?)?;
        let asked = if most.is_zero() { asked } else { asked.min(most) };
        Some(asked.saturating_sub(route.grpc_offset))
    });
    let longest = asked.or_else(|| route.longest.unwrap_or(manager))?;
    if grpc {
        headers.insert(GRPC_TIMEOUT, write(longest));
    }
    Some(longest)
}

/// In whole milliseconds, rounded up.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = digits.parse::<u64>().ok().filter(|number| *number <= MOST)?;
    Some(Duration::from_millis(match unit {
        "H" => number * 3_600_000,
        "M" => number * 60_000,
        "S" => number * 1000,
        "m" => number,
        "u" => number.div_ceil(1000),
        "n" => number.div_ceil(1_000_000),
        _ => return None,
    }))
}

/// In the smallest unit, from milliseconds up, in which it has eight digits.
fn write(duration: Duration) -> HeaderValue {
    let mut number = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut unit = 'm';
    for (larger, of) in [('S', 1000), ('M', 60), ('H', 60)] {
        if number > MOST {
            (number, unit) = (number / of, larger);
        }
    }
    HeaderValue::from_str(&format!("{}{unit}", number.min(MOST))).unwrap_or(HeaderValue::from_static("0m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_envoy_reads_them() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3000)),
            ("400m", Some(400)),
            ("1001u", Some(2)),
            ("1n", Some(1)),
            ("0m", Some(0)),
            ("99999999S", Some(99_999_999_000)),
            ("100000000m", None),
            ("5", None),
            ("m", None),
            ("", None),
            ("-1m", None),
            ("1s", None),
            ("1\u{e9}", None),
        ] {
            let value = HeaderValue::from_bytes(text.as_bytes()).ok();
            assert_eq!(value.as_ref().and_then(parse), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn timeouts_are_written_in_eight_digits() {
        for (millis, expected) in [
            (0, "0m"),
            (99_999_999, "99999999m"),
            (100_000_000, "100000S"),
            (100_000_000_000, "1666666M"),
            (6_000_000_000_000_000, "99999999H"),
        ] {
            assert_eq!(write(Duration::from_millis(millis)), expected, "{millis}");
        }
    }

    #[test]
    fn the_callers_word_counts_where_the_route_heeds_it() {
        let ms = Duration::from_millis;
        let heeds =
            |most, offset| MaxStreamDuration { longest: None, grpc_most: Some(ms(most)), grpc_offset: ms(offset) };
        let route = |longest| MaxStreamDuration { longest: Some(longest), ..MaxStreamDuration::default() };
        for (name, route, asked, grpc, expected, told) in [
            ("heeded", heeds(0, 0), Some("400m"), true, Some(400), Some("400m")),
            ("capped", heeds(100, 0), Some("400m"), true, Some(100), Some("100m")),
            ("with an offset", heeds(0, 50), Some("400m"), true, Some(350), Some("350m")),
            ("all offset", heeds(0, 400), Some("400m"), true, Some(0), Some("0m")),
            ("not asked", heeds(100, 50), None, true, Some(9000), Some("9000m")),
            ("nonsense", heeds(100, 50), Some("soon"), true, Some(9000), Some("9000m")),
            ("not heeded", route(Some(ms(5))), Some("400m"), true, Some(5), Some("5m")),
            ("off", route(None), Some("400m"), true, None, Some("400m")),
            ("no gRPC", heeds(0, 0), Some("400m"), false, Some(400), Some("400m")),
            ("no gRPC, not asked", route(Some(ms(5))), None, false, Some(5), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(asked) = asked {
                headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(asked));
            }
            let found = stream_duration(&route, Some(ms(9000)), &mut headers, grpc);
            assert_eq!(found, expected.map(ms), "{name}");
            assert_eq!(headers.get(GRPC_TIMEOUT).map(HeaderValue::as_bytes), told.map(str::as_bytes), "{name}");
        }
    }
}
