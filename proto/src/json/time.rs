//! The text forms of `Duration` and `Timestamp`.
//! Source: the comments of google/protobuf/{duration,timestamp}.proto.

/// Largest duration either way, in seconds: 10,000 years.
const MAX_DURATION: i64 = 315_576_000_000;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z in seconds since 1970.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const DAY: i64 = 86_400;

/// Reads `5s`, `0.250s` or `-1.5s` as seconds and nanoseconds of equal sign.
pub(crate) fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let seconds: i64 = digits(whole).filter(|_| whole.len() <= 12)?;
    let nanos = match fraction {
        Some(fraction) => parse_fraction(fraction)?,
        None => 0,
    };
    if seconds > MAX_DURATION || (seconds == MAX_DURATION && nanos > 0) {
        return None;
    }
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// Writes seconds and nanoseconds with 0, 3, 6 or 9 digits behind the point; `None` outside the range of `Duration`.
pub(crate) fn print_duration(seconds: i64, nanos: i32) -> Option<String> {
    let mixed = (seconds > 0 && nanos < 0) || (seconds < 0 && nanos > 0);
    if mixed || seconds.unsigned_abs() > MAX_DURATION.unsigned_abs() || nanos.unsigned_abs() > 999_999_999 {
        return None;
    }
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    Some(format!("{sign}{}{}s", seconds.unsigned_abs(), print_fraction(nanos.unsigned_abs())))
}

/// Reads an RFC 3339 time as seconds since 1970 and nanoseconds.
pub(crate) fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, rest) = text.split_at_checked(10)?;
    let (year, month, day) = (number(date, 0, 4)?, number(date, 5, 7)?, number(date, 8, 10)?);
    let punctuation = |at: usize| text.as_bytes().get(at).copied();
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| punctuation(*at) != Some(*byte))
        || !matches!(punctuation(10), Some(b'T' | b't'))
    {
        return None;
    }
    let (hour, minute, second) = (number(rest, 1, 3)?, number(rest, 4, 6)?, number(rest, 7, 9)?);
    if year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut tail = rest.get(9..)?;
    let mut nanos = 0;
    if let Some(fraction) = tail.strip_prefix('.') {
        let end = fraction.bytes().position(|b| !b.is_ascii_digit())?;
        nanos = parse_fraction(fraction.get(..end)?)?;
        tail = fraction.get(end..)?;
    }
    let offset = match tail.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (number(tail, 1, 3)?, number(tail, 4, 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
    TIMESTAMPS.contains(&seconds).then_some((seconds, nanos))
}

/// Writes RFC 3339 in UTC; `None` outside the range of `Timestamp`.
pub(crate) fn print_timestamp(seconds: i64, nanos: i32) -> Option<String> {
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos <= 999_999_999)?;
    if !TIMESTAMPS.contains(&seconds) {
        return None;
    }
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = print_fraction(nanos);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"))
}

fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn number(text: &str, from: usize, to: usize) -> Option<i64> {
    digits(text.get(from..to)?)
}

fn parse_fraction(fraction: &str) -> Option<i32> {
    if fraction.len() > 9 {
        return None;
    }
    let value = i32::try_from(digits(fraction)?).ok()?;
    let missing = 9u32.checked_sub(u32::try_from(fraction.len()).ok()?)?;
    value.checked_mul(10i32.checked_pow(missing)?)
}

fn print_fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, counting years from March so that the leap day is last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The inverse of [`days_since_1970`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("5s", Some((5, 0)), "5s"),
            ("0.25s", Some((0, 250_000_000)), "0.250s"),
            ("-1.5s", Some((-1, -500_000_000)), "-1.500s"),
            ("-0.000001s", Some((0, -1_000)), "-0.000001s"),
            ("1.000000001s", Some((1, 1)), "1.000000001s"),
            ("315576000000s", Some((315_576_000_000, 0)), "315576000000s"),
            ("0s", Some((0, 0)), "0s"),
        ];
        for (text, parsed, printed) in cases {
            assert_eq!(parse_duration(text), parsed, "{text}");
            let (seconds, nanos) = parsed.expect("given");
            assert_eq!(print_duration(seconds, nanos).as_deref(), Some(printed), "{text}");
        }
        for bad in ["", "s", "5", "5m", "1h", ".5s", "5.s", "+5s", "--5s", "5 s", "1e3s", "0.1234567890s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        for bad in ["315576000001s", "315576000000.1s", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(print_duration(1, -1), None);
        assert_eq!(print_duration(i64::MIN, 0), None);
        assert_eq!(print_duration(0, i32::MIN), None);
    }

    #[test]
    fn timestamps() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some((0, 0)), "1970-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59.5Z", Some((1_709_251_199, 500_000_000)), "2024-02-29T23:59:59.500Z"),
            ("2026-11-22T01:00:00+02:30", Some((1_795_300_200, 0)), "2026-11-21T22:30:00Z"),
            ("0001-01-01T00:00:00Z", Some((-62_135_596_800, 0)), "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999999999Z", Some((253_402_300_799, 999_999_999)), "9999-12-31T23:59:59.999999999Z"),
            ("1969-12-31t23:59:59z", Some((-1, 0)), "1969-12-31T23:59:59Z"),
        ];
        for (text, parsed, printed) in cases {
            assert_eq!(parse_timestamp(text), parsed, "{text}");
            let (seconds, nanos) = parsed.expect("given");
            assert_eq!(print_timestamp(seconds, nanos).as_deref(), Some(printed), "{text}");
        }
        for bad in [
            "",
            "2024-01-01",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "0000-01-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00+0200",
            "2024-01-01T00:00:00.Z",
            "2024-01-01 00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "2024-01-01T00:00:00.1234567891Z",
            "ääääää",
            "2024-01-01T00:00:00Zx",
        ] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
        for days in (-719_162..2_932_896).step_by(97) {
            let (year, month, day) = date_of(days);
            assert_eq!(days_since_1970(year, month, day), days);
        }
    }
}
