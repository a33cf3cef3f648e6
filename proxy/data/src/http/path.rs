//! Paths: normalisation (RFC 3986), escaped slashes, rewriting.

use crate::model::route::PathRewrite;

/// Normalises path and query as Envoy does: percent-encoded unreserved characters are decoded, `\` becomes `/`, dot segments are removed, the case of
/// percent-encodings is made upper. `None` for a path that cannot be normalised.
pub fn normalize(path: &str) -> Option<String> {
    let (path, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    if !path.starts_with('/') {
        return None;
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = decoded.get(1..)?.split('/').peekable();
    while let Some(segment) = rest.next() {
        let last = rest.peek().is_none();
        match segment {
            "." => {
                if last {
                    segments.push("");
                }
            }
            ".." => {
                segments.pop();
                if last {
                    segments.push("");
                }
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len() + query.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if normal.is_empty() {
        normal.push('/');
    }
    normal.push_str(query);
    Some(normal)
}

fn decode_unreserved(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push('/'),
            b'%' => {
                let (high, low) = (bytes.next()?, bytes.next()?);
                let value = u8::from_str_radix(std::str::from_utf8(&[high, low]).ok()?, 16).ok()?;
                if value == 0 {
                    return None;
                }
                if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
                    out.push(char::from(value));
                } else {
                    out.push('%');
                    out.push(char::from(high.to_ascii_uppercase()));
                    out.push(char::from(low.to_ascii_uppercase()));
                }
            }
            byte if byte.is_ascii() => out.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(out)
}

/// `//` becomes `/`, in the path only.
pub fn merge_slashes(path: &str) -> String {
    let (path, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut merged = String::with_capacity(path.len() + query.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged.push_str(query);
    merged
}

/// `%2F` and `%5C` in the path become `/` and `\`. `None` if there are none.
pub fn unescape_slashes(path: &str) -> Option<String> {
    let (path, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let escaped = ["%2F", "%2f", "%5C", "%5c"];
    if !escaped.iter().any(|escape| path.contains(escape)) {
        return None;
    }
    let mut plain = path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\");
    plain.push_str(query);
    Some(plain)
}

/// A path after a rewrite; `matched` is the length of what a prefix route matched. The query is kept.
pub fn rewrite(path: &str, rewrite: &PathRewrite, matched: usize) -> String {
    let (path, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    match rewrite {
        PathRewrite::Prefix(prefix) => format!("{prefix}{}{query}", path.get(matched..).unwrap_or("")),
        PathRewrite::Regex { pattern, substitution } => {
            format!("{}{query}", pattern.replace_all(path, &**substitution))
        }
    }
}

/// The text with everything percent-encoded that a header value must not hold, or that is not ASCII.
pub fn percent_encoded_controls(text: String) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' => out.push(char::from(byte)),
            byte => out.extend([
                '%',
                char::from(DIGITS[usize::from(byte >> 4)]),
                char::from(DIGITS[usize::from(byte & 15)]),
            ]),
        }
    }
    out
}

/// A certificate as URL-encoded PEM, as `Cert=` in `x-forwarded-client-cert` has it.
pub fn percent_encoded_pem(certificate: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    let mut column = 0;
    let mut push = |c: u8| {
        match c {
            b'+' => out.push_str("%2B"),
            b'/' => out.push_str("%2F"),
            b'=' => out.push_str("%3D"),
            c => out.push(char::from(c)),
        }
        column += 1;
        if column == 64 {
            out.push_str("%0A");
            column = 0;
        }
    };
    for chunk in certificate.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let index = (bits >> (18 - 6 * i) & 63) as usize;
            push(if i <= chunk.len() { ALPHABET[index] } else { b'=' });
        }
    }
    if column > 0 {
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
    out
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn paths_are_normalised_as_rfc_3986_has_it() {
        for (path, expected) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/b/.", Some("/a/b/")),
            ("/../../a", Some("/a")),
            ("/a/%2e%2e/b", Some("/b")),
            ("/%61%2Fb", Some("/a%2Fb")),
            ("/%2fb", Some("/%2Fb")),
            ("/a\\b", Some("/a/b")),
            ("/a?b=/../c", Some("/a?b=/../c")),
            ("/a//b", Some("/a//b")),
            ("/a%00b", None),
            ("/a%zz", None),
            ("/a%4", None),
            ("a", None),
        ] {
            assert_eq!(normalize(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn slashes_are_merged_in_the_path_only() {
        assert_eq!(merge_slashes("//a///b/?x=//y"), "/a/b/?x=//y");
    }

    #[test]
    fn escaped_slashes_are_found_in_the_path_only() {
        assert_eq!(unescape_slashes("/a%2Fb%5cc?x=%2F").as_deref(), Some("/a/b\\c?x=%2F"));
        assert_eq!(unescape_slashes("/a?x=%2F"), None);
    }

    #[test]
    fn a_rewrite_keeps_the_query() {
        assert_eq!(rewrite("/old/x?q=1", &PathRewrite::Prefix("/new".into()), 4), "/new/x?q=1");
        let pattern = Regex::new("^/v([0-9]+)/(.*)$").expect("a valid expression");
        let regex = PathRewrite::Regex { pattern, substitution: "/${2}/v${1}".into() };
        assert_eq!(rewrite("/v2/x?q=/v3/", &regex, 0), "/x/v2?q=/v3/");
    }

    #[test]
    fn what_no_header_value_holds_is_encoded() {
        for (text, expected) in [
            ("URI=spiffe://a/b;DNS=c d", "URI=spiffe://a/b;DNS=c d"),
            ("a\r\nb\0\t\x7f", "a%0D%0Ab%00%09%7F"),
            ("\u{fc}", "%C3%BC"),
            ("", ""),
        ] {
            assert_eq!(percent_encoded_controls(text.into()), expected);
        }
    }

    #[test]
    fn certificates_are_encoded_as_pem() {
        assert_eq!(
            percent_encoded_pem(b"\xfb\xff"),
            "-----BEGIN%20CERTIFICATE-----%0A%2B%2F8%3D%0A-----END%20CERTIFICATE-----%0A"
        );
        let long = percent_encoded_pem(&[0; 49]);
        assert!(long.contains(&format!("{}%0A", "A".repeat(64))), "{long}");
    }
}
