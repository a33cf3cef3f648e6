//! Durations on the command line and lines on standard output.

use std::io::{self, Write};
use std::time::Duration;

/// Reads a duration with its unit: `250ms`, `10s`, `2m`.
///
/// # Errors
/// Says what was given and which forms exist.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a duration: write 250ms, 10s or 2m"))?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(format!("`{text}` has no unit that is known here: write 250ms, 10s or 2m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("`{text}`: {error}"))
}

/// Writes one line to standard output.
///
/// # Errors
/// When standard output is closed.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes one line of progress to standard error; a closed standard error is no reason to stop.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_their_units() {
        for (text, millis) in [("250ms", 250), ("10s", 10_000), ("2m", 120_000), ("0.5s", 500)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_duration_without_unit_is_refused() {
        for text in ["10", "", "s", "10h", "-1s", "1.2.3s"] {
            assert!(parse_duration(text).is_err(), "`{text}` was taken");
        }
    }
}
