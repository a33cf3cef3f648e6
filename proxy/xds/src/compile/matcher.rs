//! `type.matcher.v3.StringMatcher` and `RegexMatcher`, `config.route.v3.HeaderMatcher` and `QueryParameterMatcher`.

use http::HeaderName;
use regex::Regex;
use shika_data::model::matcher::{HeaderMatcher, HeaderRef, HeaderTest, QueryMatcher, StringMatcher, full_match_regex};
use shika_proto::envoy::{
    config::route::v3::{self as route, header_matcher, query_parameter_matcher},
    r#type::matcher::v3::{self as proto, string_matcher},
};

use super::{Compiled, Fault, Within, non_empty};

/// A string matcher.
pub(crate) fn string(matcher: &proto::StringMatcher) -> Compiled<StringMatcher> {
    use string_matcher::MatchPattern;
    let ignore_case = matcher.ignore_case;
    let text = |value: &str| -> Box<str> { if ignore_case { value.to_ascii_lowercase().into() } else { value.into() } };
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::Exact(value)) => StringMatcher::Exact { value: text(value), ignore_case },
        Some(MatchPattern::Prefix(value)) => {
            StringMatcher::Prefix { value: text(non_empty(value, "prefix")?), ignore_case }
        }
        Some(MatchPattern::Suffix(value)) => {
            StringMatcher::Suffix { value: text(non_empty(value, "suffix")?), ignore_case }
        }
        Some(MatchPattern::Contains(value)) => {
            StringMatcher::Contains { value: text(non_empty(value, "contains")?), ignore_case }
        }
        Some(MatchPattern::SafeRegex(regex)) => {
            if ignore_case {
                return Err(Fault::new("ignore_case", "ignore_case has no effect for safe_regex."));
            }
            StringMatcher::Regex(Box::new(full_regex(regex).within("safe_regex")?))
        }
        Some(MatchPattern::Custom(_)) => return Err(Fault::new("custom", "custom string matchers are not supported")),
        None => return Err(Fault::new("match_pattern", "value is required")),
    })
}

/// A regex that has to match the whole text.
pub(crate) fn full_regex(matcher: &proto::RegexMatcher) -> Compiled<Regex> {
    let pattern = non_empty(&matcher.regex, "regex")?;
    full_match_regex(pattern).map_err(|error| regex_fault("regex", pattern, &error))
}

/// A regex that is searched for.
pub(crate) fn search_regex(matcher: &proto::RegexMatcher) -> Compiled<Regex> {
    let pattern = non_empty(&matcher.regex, "regex")?;
    regex::RegexBuilder::new(pattern)
        .size_limit(1 << 20)
        .dfa_size_limit(1 << 20)
        .build()
        .map_err(|error| regex_fault("regex", pattern, &error))
}

fn regex_fault(field: &str, pattern: &str, error: &regex::Error) -> Fault {
    let why = match error {
        regex::Error::CompiledTooBig(limit) => format!("compiled size is above {limit} bytes"),
        // The library draws a caret under the pattern over several lines; its last line says what is wrong.
        other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    };
    let pattern: String = pattern.chars().take(128).collect();
    Fault::new(field, format!("invalid regex '{pattern}': {why}"))
}

/// A regex and what its matches are replaced with; the substitution comes back in the syntax of the regex crate.
pub(crate) fn substitution(rewrite: &proto::RegexMatchAndSubstitute) -> Compiled<(Regex, Box<str>)> {
    let pattern = rewrite.pattern.as_ref().ok_or_else(|| Fault::new("pattern", "value is required"))?;
    let regex = search_regex(pattern).within("pattern")?;
    let mut text = String::with_capacity(rewrite.substitution.len());
    let mut characters = rewrite.substitution.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => text.push_str("$$"),
            '\\' => match characters.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit.to_digit(10).unwrap_or(0) as usize;
                    if group >= regex.captures_len() {
                        let groups = regex.captures_len() - 1;
                        return Err(Fault::new(
                            "substitution",
                            format!("\\{group} is asked for, but the pattern has {groups} capture groups"),
                        ));
                    }
                    text.push_str(&format!("${{{group}}}"));
                }
                _ => {
                    return Err(Fault::new(
                        "substitution",
                        "a backslash must be followed by a digit or another backslash",
                    ));
                }
            },
            other => text.push(other),
        }
    }
    Ok((regex, text.into()))
}

/// A header or pseudo-header by name.
pub(crate) fn header_ref(name: &str, field: &str) -> Compiled<HeaderRef> {
    let lower = non_empty(name, field)?.to_ascii_lowercase();
    Ok(match lower.as_str() {
        ":method" => HeaderRef::Method,
        ":path" => HeaderRef::Path,
        ":authority" | "host" => HeaderRef::Authority,
        ":scheme" => HeaderRef::Scheme,
        ":protocol" => HeaderRef::Protocol,
        ":status" => HeaderRef::Status,
        _ => HeaderRef::Name(header_name(&lower, field)?),
    })
}

/// An ordinary header's name.
pub(crate) fn header_name(name: &str, field: &str) -> Compiled<HeaderName> {
    HeaderName::from_bytes(non_empty(name, field)?.to_ascii_lowercase().as_bytes())
        .map_err(|_| Fault::new(field, format!("{name:?} is not a valid header name")))
}

/// A header matcher.
pub(crate) fn header(matcher: &route::HeaderMatcher) -> Compiled<HeaderMatcher> {
    use header_matcher::HeaderMatchSpecifier as Specifier;
    let plain = |value: &str| -> Box<str> { value.into() };
    let value = |matcher| HeaderTest::Value(matcher);
    let test = match &matcher.header_match_specifier {
        None => HeaderTest::Present(true),
        Some(Specifier::PresentMatch(wanted)) => HeaderTest::Present(*wanted),
        Some(Specifier::StringMatch(matcher)) => value(string(matcher).within("string_match")?),
        Some(Specifier::ExactMatch(text)) => value(StringMatcher::Exact { value: plain(text), ignore_case: false }),
        Some(Specifier::PrefixMatch(text)) => {
            value(StringMatcher::Prefix { value: plain(non_empty(text, "prefix_match")?), ignore_case: false })
        }
        Some(Specifier::SuffixMatch(text)) => {
            value(StringMatcher::Suffix { value: plain(non_empty(text, "suffix_match")?), ignore_case: false })
        }
        Some(Specifier::ContainsMatch(text)) => {
            value(StringMatcher::Contains { value: plain(non_empty(text, "contains_match")?), ignore_case: false })
        }
        Some(Specifier::SafeRegexMatch(regex)) => {
            value(StringMatcher::Regex(Box::new(full_regex(regex).within("safe_regex_match")?)))
        }
        Some(Specifier::RangeMatch(range)) => HeaderTest::Range(range.start..range.end),
    };
    Ok(HeaderMatcher {
        name: header_ref(&matcher.name, "name")?,
        test,
        invert: matcher.invert_match,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

/// A query parameter matcher.
pub(crate) fn query(matcher: &route::QueryParameterMatcher) -> Compiled<QueryMatcher> {
    use query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match &matcher.query_parameter_match_specifier {
        None | Some(Specifier::PresentMatch(true)) => None,
        Some(Specifier::PresentMatch(false)) => {
            return Err(Fault::new("present_match", "matching on the absence of a query parameter is not supported"));
        }
        Some(Specifier::StringMatch(matcher)) => Some(string(matcher).within("string_match")?),
    };
    Ok(QueryMatcher { name: non_empty(&matcher.name, "name")?.into(), value })
}
