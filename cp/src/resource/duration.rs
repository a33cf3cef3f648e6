//! The two grammars of durations that Kuma's users write.

use std::time::Duration;

/// Units with their milliseconds. "ms" stands before "m" and "s", so that it is not taken for either.
const UNITS: [(&str, u64); 7] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
    ("y", 31_536_000_000),
];

/// Reads a duration of a Mesh, such as `24h`, `10y` or `500ms`: one number and one unit (Kuma `ParseDuration` in
/// `mesh_helpers.go`). A year has 365 days.
///
/// # Errors
/// A text that says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .and_then(|(_, millis)| number.parse::<u64>().ok()?.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!(
                "not a valid duration string: {text:?}; write one number and one of y, w, d, h, m, s, ms, such as 24h"
            )
        })
}

/// Reads a duration as Go writes them, such as `24h`, `1h30m` or `1.5s`: the grammar of `--valid-for` and `validFor`
/// (Go `time.ParseDuration`). Only positive durations and zero are read.
///
/// # Errors
/// A text that says what was expected.
pub fn parse_go_duration(text: &str) -> Result<Duration, String> {
    let invalid = || {
        format!("invalid duration {text:?}; write numbers with the units h, m, s, ms, us or ns, such as 24h or 1h30m")
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos: f64 = 0.0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(invalid()),
        };
        nanos += number.parse::<f64>().map_err(|_| invalid())? * factor;
        rest = next;
    }
    // Go counts nanoseconds in 63 bits, about 292 years.
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(Duration::from_nanos(nanos as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_of_a_mesh() {
        for (text, millis) in [
            ("24h", 86_400_000),
            ("10y", 315_360_000_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1w", 604_800_000),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "24", "h", "-1h", "1d12h", "1 h", "1x", "99999999999999999999y", "9999999999999y", "1.5h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, millis) in [("24h", 86_400_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("0", 0), ("300ms", 300)] {
            assert_eq!(parse_go_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "24", "h", "-1h", "1d", "1 h", "1..5s", ".s", "9999999999h", "+"] {
            assert!(parse_go_duration(text).is_err(), "{text}");
        }
    }
}
