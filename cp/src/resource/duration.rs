//! The two grammars of durations that Kuma's users write.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// A duration in a policy: nanoseconds, read and written as Go does (`1h0m0s`). Validation refuses negative ones where they make no
/// sense, with a message about the field instead of one about syntax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

impl GoDuration {
    /// A duration of whole milliseconds.
    pub const fn from_millis(millis: u32) -> GoDuration {
        GoDuration(millis as i64 * 1_000_000)
    }

    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u32) -> GoDuration {
        GoDuration(seconds as i64 * 1_000_000_000)
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The length; zero for a negative one, which validation does not let pass.
    pub fn length(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or_default())
    }
}

impl fmt::Display for GoDuration {
    /// As Go's `Duration.String`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(nanos, 1_000_000)),
            _ => {
                let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                write!(f, "{}s", decimal(rest, 1_000_000_000))
            }
        }
    }
}

/// `nanos / unit` with as many decimal places as it needs.
fn decimal(nanos: u64, unit: u64) -> String {
    let places = unit.ilog10() as usize;
    let fraction = format!("{:0places$}", nanos % unit);
    match fraction.trim_end_matches('0') {
        "" => (nanos / unit).to_string(),
        fraction => format!("{}.{fraction}", nanos / unit),
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let (sign, length) = match text.strip_prefix('-') {
            Some(rest) if !rest.starts_with('+') => (-1, rest),
            _ => (1, text.as_str()),
        };
        let length = parse_go_duration(length).map_err(serde::de::Error::custom)?;
        Ok(GoDuration(sign * i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)))
    }
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

    #[test]
    fn go_durations_are_written_as_go_does() {
        for (text, written) in [
            ("111s", "1m51s"),
            ("1h", "1h0m0s"),
            ("20m", "20m0s"),
            ("0", "0s"),
            ("25ms", "25ms"),
            ("1500ms", "1.5s"),
            ("1.5ms", "1.5ms"),
            ("90m", "1h30m0s"),
            ("-10s", "-10s"),
            ("250us", "250µs"),
            ("7ns", "7ns"),
        ] {
            let duration: GoDuration = serde_json::from_value(text.into()).unwrap();
            assert_eq!(duration.to_string(), written, "{text}");
            assert_eq!(serde_json::to_value(duration).unwrap(), written);
        }
        for text in ["", "-", "-+1s", "1", "x"] {
            assert!(serde_json::from_value::<GoDuration>(text.into()).is_err(), "{text}");
        }
        assert_eq!(GoDuration::from_secs(3600).to_string(), "1h0m0s");
        assert!(serde_json::from_value::<GoDuration>("-1s".into()).unwrap().is_negative());
    }
}
