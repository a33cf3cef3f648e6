//! String, header, path and query matchers, compiled.
//!
//! Source: Envoy `type.matcher.v3.StringMatcher`, `config.route.v3.HeaderMatcher`, `QueryParameterMatcher`.

use http::{HeaderName, HeaderValue};
use regex::Regex;

/// Envoy `StringMatcher`.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// Whole text.
    Exact {
        /// In lower case when `ignore_case`.
        value: Box<str>,
        /// ASCII case is ignored.
        ignore_case: bool,
    },
    /// Start of the text.
    Prefix {
        /// In lower case when `ignore_case`.
        value: Box<str>,
        /// ASCII case is ignored.
        ignore_case: bool,
    },
    /// End of the text.
    Suffix {
        /// In lower case when `ignore_case`.
        value: Box<str>,
        /// ASCII case is ignored.
        ignore_case: bool,
    },
    /// Somewhere in the text.
    Contains {
        /// In lower case when `ignore_case`.
        value: Box<str>,
        /// ASCII case is ignored.
        ignore_case: bool,
    },
    /// The whole text; the compiler anchors the expression, as RE2 full match does.
    Regex(Box<Regex>),
}

impl StringMatcher {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact { value, ignore_case: false } => text == &**value,
            Self::Exact { value, ignore_case: true } => text.eq_ignore_ascii_case(value),
            Self::Prefix { value, ignore_case } => {
                text.as_bytes().get(..value.len()).is_some_and(|head| equal(head, value.as_bytes(), *ignore_case))
            }
            Self::Suffix { value, ignore_case } => text
                .len()
                .checked_sub(value.len())
                .and_then(|at| text.as_bytes().get(at..))
                .is_some_and(|tail| equal(tail, value.as_bytes(), *ignore_case)),
            Self::Contains { value, ignore_case: false } => text.contains(&**value),
            Self::Contains { value, ignore_case: true } => text.to_ascii_lowercase().contains(&**value),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

fn equal(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// Compiles an RE2 expression for a full match, as Envoy's `safe_regex` has it. The size of the program is bounded.
pub fn full_match_regex(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).dfa_size_limit(1 << 20).build()
}

/// A header or pseudo-header that a matcher or a format names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderRef {
    /// `:method`
    Method,
    /// `:path`: path and query.
    Path,
    /// `:authority` (HTTP/1 `host`).
    Authority,
    /// `:scheme`
    Scheme,
    /// `:protocol` of an extended CONNECT.
    Protocol,
    /// `:status`; only responses have it.
    Status,
    /// An ordinary header.
    Name(HeaderName),
}

/// Envoy `HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Which header. One of the values of a repeated header suffices (Envoy `match_headers_individually`, since 1.39).
    pub name: HeaderRef,
    /// What is asked of it.
    pub test: HeaderTest,
    /// The outcome is turned round. A missing header stays "no match" unless `missing_as_empty` or the test is for presence.
    pub invert: bool,
    /// `treat_missing_header_as_empty`
    pub missing_as_empty: bool,
}

/// The condition of a [`HeaderMatcher`].
#[derive(Clone, Debug)]
pub enum HeaderTest {
    /// The header is there (`true`) or is not (`false`).
    Present(bool),
    /// The value matches.
    Value(StringMatcher),
    /// The value is a base-10 integer in `start..end`.
    Range(std::ops::Range<i64>),
}

impl HeaderMatcher {
    /// `values` are those of a header that may be repeated. One that is not UTF-8 matches nothing.
    pub fn matches_any<'a>(&self, values: impl Iterator<Item = &'a HeaderValue>) -> bool {
        let mut values = values.map(|value| std::str::from_utf8(value.as_bytes()).unwrap_or("\u{fffd}")).peekable();
        let Some(first) = values.next() else { return self.matches(None) };
        if values.peek().is_none() {
            return self.matches(Some(first));
        }
        // "None of them", not "one that is not", is the opposite of "one of them".
        std::iter::once(first).chain(values).any(|value| self.matches(Some(value)) != self.invert) != self.invert
    }

    /// `value` is the header's only value, `None` when it is missing.
    pub fn matches(&self, value: Option<&str>) -> bool {
        if let HeaderTest::Present(wanted) = self.test {
            let present = value.is_some() || self.missing_as_empty;
            return (present == wanted) != self.invert;
        }
        let value = match value {
            Some(value) => value,
            None if self.missing_as_empty => "",
            None => return false,
        };
        let matched = match &self.test {
            HeaderTest::Present(_) => true,
            HeaderTest::Value(matcher) => matcher.matches(value),
            HeaderTest::Range(range) => value.parse::<i64>().is_ok_and(|number| range.contains(&number)),
        };
        matched != self.invert
    }
}

/// Envoy `QueryParameterMatcher`.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    /// Parameter name, as written in the URL.
    pub name: Box<str>,
    /// `None`: the parameter only has to be there.
    pub value: Option<StringMatcher>,
}
