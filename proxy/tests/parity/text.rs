//! Values as text: what was expected of them, and how values that differ from run to run are made comparable.

use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Deserializer};
use serde_yaml_ng::Value;

/// What a value must be. In YAML: a scalar (the whole value), `{regex: …}` or `{contains: …}`.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// The whole value.
    Exact(String),
    /// The value contains a match.
    Regex(Regex),
    /// The value contains this text.
    Contains(String),
}

impl Pattern {
    /// Whether a value is as expected.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Pattern::Exact(text) => text == value,
            Pattern::Regex(regex) => regex.is_match(value),
            Pattern::Contains(text) => value.contains(text.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(text) => write!(f, "{text:?}"),
            Pattern::Regex(regex) => write!(f, "a match of /{regex}/"),
            Pattern::Contains(text) => write!(f, "something with {text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
        };
        let value = Value::deserialize(deserializer)?;
        if let Some(text) = scalar(&value) {
            return Ok(Pattern::Exact(text));
        }
        let Value::Mapping(map) = &value else {
            return Err(D::Error::custom("expected a scalar, {regex: …} or {contains: …}"));
        };
        match map.iter().next().map(|(k, v)| (k.as_str(), scalar(v))) {
            Some((Some("regex"), Some(text))) if map.len() == 1 => {
                Regex::new(&text).map(Pattern::Regex).map_err(D::Error::custom)
            }
            Some((Some("contains"), Some(text))) if map.len() == 1 => Ok(Pattern::Contains(text)),
            Some(_) | None => Err(D::Error::custom("expected a scalar, {regex: …} or {contains: …}")),
        }
    }
}

static UUID4: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$").expect("a literal")
});
static IMF_DATE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT$").expect("a literal"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| Regex::new("^[0-9]+$").expect("a literal"));
static LOCAL_PORT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(127\.\d+\.\d+\.\d+):\d+").expect("a literal"));

/// Makes values of two runs comparable: ports and paths become their placeholders again, generated values become their format.
#[derive(Debug, Default)]
pub struct Normalizer {
    /// Text of this run and what stands for it, longest first.
    replacements: Vec<(String, String)>,
    /// The case's text.
    source: String,
}

impl Normalizer {
    /// From the placeholders of a run (`LISTENER` → `10000`) and the case's text.
    pub fn new<'a>(placeholders: impl Iterator<Item = (&'a str, &'a str)>, source: &str) -> Self {
        let mut replacements: Vec<(String, String)> = Vec::new();
        for (name, value) in placeholders {
            if value.bytes().all(|b| b.is_ascii_digit()) {
                // A port is replaced only where an address is before it (`:` in text, `_` in stat names): `12345` may also be a length.
                replacements.extend([":", "_"].map(|sep| (format!("{sep}{value}"), format!("{sep}<{name}>"))));
            } else {
                replacements.push((value.to_owned(), format!("<{name}>")));
            }
        }
        replacements.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Normalizer { replacements, source: source.to_owned() }
    }

    /// A free text: log line, body, TLS fact.
    pub fn text(&self, value: &str) -> String {
        let mut out = value.to_owned();
        for (text, placeholder) in &self.replacements {
            out = out.replace(text, placeholder);
        }
        // What is left behind a loopback address is a source port, chosen by the kernel.
        LOCAL_PORT.replace_all(&out, "$1:<PORT>").into_owned()
    }

    /// A header value. A generated value in a wrong format is left as it is, and so is a request id that the case itself spells.
    pub fn header(&self, name: &str, value: &str) -> String {
        match name.to_ascii_lowercase().as_str() {
            "x-request-id" if UUID4.is_match(value) && !self.source.contains(value) => "<uuid4>".into(),
            "date" if IMF_DATE.is_match(value) => "<date>".into(),
            "x-envoy-upstream-service-time" if DIGITS.is_match(value) => "<ms>".into(),
            _ => self.text(value),
        }
    }
}

/// A short form of bytes for reports: when short, text as it is and other bytes with escapes; else length and checksum.
pub fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= 4096 => text.to_owned(),
        Err(_) if bytes.len() <= 4096 => bytes.escape_ascii().to_string(),
        Ok(_) | Err(_) => {
            // FNV-1a: enough to see that a body differs; nobody attacks a test's own bytes.
            let sum = bytes
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
            format!("<{} bytes, fnv {sum:016x}>", bytes.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_values_are_normalised_only_in_their_format() {
        let ports = [("LISTENER", "10001"), ("UPSTREAM", "1000")];
        let normalizer =
            Normalizer::new(ports.into_iter(), "headers: [\"x-request-id: 7b674932-635d-4ceb-b907-12674f8c7267\"]");
        let cases = [
            ("x-request-id", "aa674932-635d-4ceb-b907-12674f8c7267", "<uuid4>"),
            ("x-request-id", "7b674932-635d-4ceb-b907-12674f8c7267", "7b674932-635d-4ceb-b907-12674f8c7267"),
            ("x-request-id", "aa674932-635d-1ceb-b907-12674f8c7267", "aa674932-635d-1ceb-b907-12674f8c7267"),
            ("date", "Sun, 22 Nov 2026 02:00:00 GMT", "<date>"),
            ("date", "2026-11-22", "2026-11-22"),
            ("x-envoy-upstream-service-time", "12", "<ms>"),
            ("x-envoy-upstream-service-time", "-1", "-1"),
            ("location", "http://127.0.0.1:10001/", "http://127.0.0.1:<LISTENER>/"),
            ("content-length", "1000", "1000"),
            ("x-peer", "127.0.0.1:50123", "127.0.0.1:<PORT>"),
        ];
        for (name, value, expected) in cases {
            assert_eq!(normalizer.header(name, value), expected, "{name}: {value}");
        }
    }

    #[test]
    fn patterns() {
        let pattern = |yaml: &str| serde_yaml_ng::from_str::<Pattern>(yaml).expect(yaml);
        assert!(pattern("5").matches("5"));
        assert!(!pattern("5").matches("55"));
        assert!(pattern("{regex: '^a+$'}").matches("aaa"));
        assert!(!pattern("{regex: '^a+$'}").matches("ab"));
        assert!(pattern("{contains: b}").matches("abc"));
        assert!(serde_yaml_ng::from_str::<Pattern>("{prefix: a}").is_err());
        assert!(serde_yaml_ng::from_str::<Pattern>("[a]").is_err());
    }

    #[test]
    fn large_bodies_are_summarised_and_still_told_apart() {
        let one = vec![b'a'; 5000];
        let mut other = one.clone();
        other[4999] = b'b';
        assert_ne!(printable(&one), printable(&other));
        assert_eq!(printable(b"short"), "short");
    }
}
