//! Numbers that users may write as a number or as text, so that they can have decimal places (Kubernetes `IntOrString`).

use serde::{Deserialize, Serialize};

/// A whole number, or text that holds a decimal number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or a string that holds a number")]
pub enum IntOrString {
    /// A whole number.
    Int(i64),
    /// Text, such as `"10.5"`.
    Text(String),
}

impl IntOrString {
    /// The number, or `None` if the text holds none.
    pub fn number(&self) -> Option<f64> {
        match self {
            IntOrString::Int(number) => Some(*number as f64),
            // Neither "inf" nor "nan", which Rust reads too.
            IntOrString::Text(text)
                if text.bytes().any(|b| b.is_ascii_alphabetic() && !b.eq_ignore_ascii_case(&b'e')) =>
            {
                None
            }
            IntOrString::Text(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers() {
        for (yaml, number) in [
            ("7", Some(7.0)),
            ("'10.5'", Some(10.5)),
            ("'-1'", Some(-1.0)),
            ("'x'", None),
            ("''", None),
            ("'inf'", None),
            ("'nan'", None),
        ] {
            let found: IntOrString = serde_yaml_ng::from_str(yaml).unwrap();
            assert_eq!(found.number(), number, "{yaml}");
        }
        assert!(serde_yaml_ng::from_str::<IntOrString>("1.5").is_err(), "as Kuma, which takes decimals as text only");
    }
}
