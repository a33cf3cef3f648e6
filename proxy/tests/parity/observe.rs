//! What one run of a case showed, as a flat map from path to value, and the comparison of two such maps.

use std::{collections::BTreeMap, io::Read as _};

use parking_lot::Mutex;

use crate::case::Difference;
use crate::text::{Normalizer, Pattern, printable};

/// What one run showed: `client[0].step[1].status` → `200`.
pub type Observed = BTreeMap<String, String>;

/// Collects what a run shows and which expectations it missed.
#[derive(Debug)]
pub struct Recorder {
    normalizer: Normalizer,
    observed: Mutex<Observed>,
    missed: Mutex<Vec<String>>,
}

impl Recorder {
    /// An empty one.
    pub fn new(normalizer: Normalizer) -> Self {
        Recorder { normalizer, observed: Mutex::default(), missed: Mutex::default() }
    }

    /// Notes a value under a path. A second value at the same path is appended in a line of its own.
    pub fn note(&self, path: &str, value: &str) {
        let value = self.normalizer.text(value);
        self.note_as_is(path, value);
    }

    /// Notes that something was there, under a path that is itself made comparable.
    pub fn note_present(&self, path: &str) {
        self.note_as_is(&self.normalizer.text(path), "present".to_owned());
    }

    fn note_as_is(&self, path: &str, value: String) {
        let mut observed = self.observed.lock();
        match observed.get_mut(path) {
            Some(earlier) => {
                earlier.push('\n');
                earlier.push_str(&value);
            }
            None => {
                observed.insert(path.to_owned(), value);
            }
        }
    }

    /// Notes header lines: the order of different names carries no meaning (RFC 9110 section 5.3) and is not compared,
    /// the order of values under one name is. Spelling of names is compared.
    pub fn note_headers(&self, path: &str, headers: &[(String, String)]) {
        for (name, value) in headers {
            let value = self.normalizer.header(name, value);
            self.note_as_is(&format!("{path}.{name}"), value);
        }
    }

    /// Notes a body. What gzip makes of a text differs from one implementation to another, so the text is compared, and that it was gzip.
    pub fn note_body(&self, path: &str, body: &[u8]) {
        let mut text = Vec::new();
        if body.starts_with(&[0x1f, 0x8b]) && flate2::read::MultiGzDecoder::new(body).read_to_end(&mut text).is_ok() {
            return self.note(path, &format!("gzip({})", printable(&text)));
        }
        self.note(path, &printable(body));
    }

    /// Notes that an expectation was missed.
    pub fn miss(&self, what: impl Into<String>) {
        self.missed.lock().push(what.into());
    }

    /// Checks the value at a path; `None` expects nothing there.
    pub fn expect(&self, path: &str, expected: Option<&Pattern>) {
        let observed = self.observed.lock();
        match (expected, observed.get(path)) {
            (None, None) => {}
            (None, Some(value)) => self.miss(format!("{path}: expected nothing, saw {value:?}")),
            (Some(pattern), None) => self.miss(format!("{path}: expected {pattern}, saw nothing")),
            (Some(pattern), Some(value)) => {
                if !pattern.matches(value) {
                    self.miss(format!("{path}: expected {pattern}, saw {value:?}"));
                }
            }
        }
    }

    /// Checks an exact value at a path.
    pub fn expect_text(&self, path: &str, expected: &str) {
        self.expect(path, Some(&Pattern::Exact(expected.to_owned())));
    }

    /// Takes back all that was noted, or missed, under a prefix.
    pub fn forget(&self, prefix: &str) {
        self.observed.lock().retain(|path, _| !path.starts_with(prefix));
        self.missed.lock().retain(|what| !what.starts_with(prefix));
    }

    /// Everything noted, and every expectation that was missed.
    pub fn take(&self) -> (Observed, Vec<String>) {
        (std::mem::take(&mut *self.observed.lock()), std::mem::take(&mut *self.missed.lock()))
    }
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    /// Differences that an exception covers: path and index into the case's exceptions, or (after those) the global ones.
    pub listed: Vec<(String, usize)>,
    /// Differences that nothing covers, ready to print.
    pub unlisted: Vec<String>,
}

/// Compares two runs. `exceptions` are the case's, followed by the global ones.
pub fn compare(envoy: &Observed, shika: &Observed, exceptions: &[Difference]) -> Comparison {
    let mut result = Comparison::default();
    let paths: std::collections::BTreeSet<&String> = envoy.keys().chain(shika.keys()).collect();
    for path in paths {
        let (on_envoy, on_shika) = (envoy.get(path), shika.get(path));
        if on_envoy == on_shika {
            continue;
        }
        let covers = |exception: &Difference| {
            glob(&exception.at, path)
                && side_matches(exception.envoy.as_deref(), on_envoy)
                && side_matches(exception.shika.as_deref(), on_shika)
        };
        match exceptions.iter().position(covers) {
            Some(index) => result.listed.push((path.clone(), index)),
            None => {
                let show = |value: Option<&String>| value.map_or("(nothing)".to_owned(), |v| format!("{v:?}"));
                result.unlisted.push(format!("{path}: envoy {}, shika-proxy {}", show(on_envoy), show(on_shika)));
            }
        }
    }
    result
}

/// Indexes of exceptions that no difference needed.
pub fn stale(exceptions: usize, listed: &[(String, usize)]) -> Vec<usize> {
    (0..exceptions).filter(|index| !listed.iter().any(|(_, used)| used == index)).collect()
}

/// An exception that names a value holds for that value only; the word `(nothing)` stands for no value.
fn side_matches(expected: Option<&str>, value: Option<&String>) -> bool {
    match (expected, value) {
        (None, _) => true,
        (Some("(nothing)"), None) => true,
        (Some(expected), Some(value)) => expected == value,
        (Some(_), None) => false,
    }
}

/// Whether `pattern`, in which `*` stands for any run of characters, covers the whole of `text`.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    let mut rest = rest;
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(entries: &[(&str, &str)]) -> Observed {
        entries.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect()
    }

    fn exception(at: &str, envoy: Option<&str>, shika: Option<&str>) -> Difference {
        Difference {
            at: at.into(),
            envoy: envoy.map(Into::into),
            shika: shika.map(Into::into),
            reason: "a reason that says why".into(),
        }
    }

    #[test]
    fn globs() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.", true),
            ("*.status", "client[0].step[1].status", true),
            ("client*.header.*", "client[0].step[0].header.server", true),
            ("client*.trailer.*", "client[0].step[0].header.server", false),
            ("*", "", true),
            ("a*a", "a", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(glob(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let envoy = observed(&[("same", "1"), ("value", "1"), ("only-envoy", "1")]);
        let shika = observed(&[("same", "1"), ("value", "2"), ("only-shika", "1")]);
        let result = compare(&envoy, &shika, &[]);
        assert_eq!(result.listed, vec![]);
        assert_eq!(
            result.unlisted,
            vec![
                "only-envoy: envoy \"1\", shika-proxy (nothing)",
                "only-shika: envoy (nothing), shika-proxy \"1\"",
                "value: envoy \"1\", shika-proxy \"2\"",
            ]
        );
    }

    #[test]
    fn an_exception_covers_its_own_values_only_and_goes_stale() {
        let envoy = observed(&[("value", "1")]);
        let shika = observed(&[("value", "2")]);
        let fits = [exception("other", None, None), exception("value", Some("1"), Some("2"))];
        let result = compare(&envoy, &shika, &fits);
        assert_eq!(result.listed, vec![("value".to_owned(), 1)]);
        assert!(result.unlisted.is_empty());
        assert_eq!(stale(fits.len(), &result.listed), vec![0]);

        let wrong_value = [exception("value", Some("1"), Some("3"))];
        assert_eq!(compare(&envoy, &shika, &wrong_value).unlisted.len(), 1);
        let nothing = [exception("value", Some("(nothing)"), None)];
        assert_eq!(compare(&envoy, &shika, &nothing).unlisted.len(), 1);
        assert_eq!(compare(&Observed::new(), &shika, &nothing).listed.len(), 1);
    }

    #[test]
    fn expectations_are_checked_whatever_the_subjects_agree_on() {
        let recorder = Recorder::new(Normalizer::default());
        recorder.note_headers("h", &[("a".into(), "1".into()), ("a".into(), "2".into())]);
        recorder.expect_text("h.a", "1\n2");
        recorder.expect("h.b", None);
        assert_eq!(recorder.take().1, Vec::<String>::new());
        recorder.note("status", "200");
        recorder.expect_text("status", "404");
        recorder.expect("status", None);
        recorder.expect_text("body", "x");
        assert_eq!(recorder.take().1.len(), 3);
    }
}
