//! Headers as matchers and formats see them: a message's own, or those of them that were kept for its log.

use std::{borrow::Cow, iter, slice, str};

use http::{HeaderMap, HeaderName, HeaderValue, header::ValueIter};

/// A look at headers.
#[derive(Clone, Copy, Debug)]
pub enum HeaderView<'a> {
    /// All that a message has.
    All(&'a HeaderMap),
    /// What was kept, in the order of the message.
    Kept(&'a [(HeaderName, HeaderValue)]),
}

impl<'a> From<&'a HeaderMap> for HeaderView<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        HeaderView::All(headers)
    }
}

impl<'a> HeaderView<'a> {
    /// The first value of a header.
    pub fn get(self, name: &HeaderName) -> Option<&'a HeaderValue> {
        match self {
            HeaderView::All(headers) => headers.get(name),
            HeaderView::Kept(headers) => headers.iter().find(|(other, _)| other == name).map(|(_, value)| value),
        }
    }

    /// All its values, in their order.
    pub fn get_all<'n>(self, name: &'n HeaderName) -> Values<'a, 'n> {
        match self {
            HeaderView::All(headers) => Values::All(headers.get_all(name).into_iter()),
            HeaderView::Kept(headers) => Values::Kept(headers.iter(), name),
        }
    }

    /// Its values joined by `,`, as Envoy's matchers and formats see them. Borrowed when there is one; `None` when missing or not UTF-8.
    pub fn joined(self, name: &HeaderName) -> Option<Cow<'a, str>> {
        let mut values = self.get_all(name);
        let first = str::from_utf8(values.next()?.as_bytes()).ok()?;
        let Some(second) = values.next() else { return Some(first.into()) };
        let mut joined = String::from(first);
        for value in iter::once(second).chain(values) {
            joined.push(',');
            joined.push_str(str::from_utf8(value.as_bytes()).ok()?);
        }
        Some(joined.into())
    }
}

/// The values of one header.
#[derive(Debug)]
pub enum Values<'a, 'n> {
    /// Out of all.
    All(ValueIter<'a, HeaderValue>),
    /// Out of what is kept, which is so little that looking at each is faster than a table.
    Kept(slice::Iter<'a, (HeaderName, HeaderValue)>, &'n HeaderName),
}

impl<'a> Iterator for Values<'a, '_> {
    type Item = &'a HeaderValue;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Values::All(values) => values.next(),
            Values::Kept(headers, name) => headers.find(|(other, _)| other == *name).map(|(_, value)| value),
        }
    }
}

/// Headers that outlive their message.
#[derive(Clone, Debug)]
pub enum KeptHeaders {
    /// All of them.
    All(HeaderMap),
    /// Those that somebody asks for.
    Some(Vec<(HeaderName, HeaderValue)>),
}

impl KeptHeaders {
    /// Of `headers` those with one of `names`.
    pub fn of(headers: &HeaderMap, names: &HeaderNames) -> Self {
        let wanted = headers.iter().filter(|(name, _)| names.contains(name));
        KeptHeaders::Some(wanted.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// A look at them.
    pub fn view(&self) -> HeaderView<'_> {
        match self {
            KeptHeaders::All(headers) => HeaderView::All(headers),
            KeptHeaders::Some(headers) => HeaderView::Kept(headers),
        }
    }
}

/// Names of headers that somebody asks for.
#[derive(Clone, Debug)]
pub struct HeaderNames {
    names: Vec<HeaderName>,
    /// A bit for each of their lengths: most other names differ in that.
    lengths: u64,
}

impl HeaderNames {
    /// Whether a name is one of them.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.lengths & length_bit(name) != 0 && self.names.contains(name)
    }

    /// In alphabetical order.
    pub fn iter(&self) -> slice::Iter<'_, HeaderName> {
        self.names.iter()
    }
}

impl From<Vec<HeaderName>> for HeaderNames {
    fn from(mut names: Vec<HeaderName>) -> Self {
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        let lengths = names.iter().fold(0, |lengths, name| lengths | length_bit(name));
        HeaderNames { names, lengths }
    }
}

/// Lengths from 63 on share one.
fn length_bit(name: &HeaderName) -> u64 {
    1 << name.as_str().len().min(63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_as_it_did() {
        const NAMES: [HeaderName; 4] = [
            HeaderName::from_static("x-one"),
            HeaderName::from_static("x-missing"),
            HeaderName::from_static("x-two"),
            HeaderName::from_static("x-bytes"),
        ];
        let other = HeaderName::from_static("x-six");
        let mut headers = HeaderMap::new();
        for (name, value) in [(0, "a"), (2, "b"), (0, ""), (2, "c")] {
            headers.append(&NAMES[name], HeaderValue::from_static(value));
        }
        headers.insert(&other, HeaderValue::from_static("d"));
        headers.insert(&NAMES[3], HeaderValue::from_bytes(b"\xff").unwrap_or(HeaderValue::from_static("")));

        let kept = KeptHeaders::of(&headers, &NAMES.to_vec().into());
        let all = KeptHeaders::All(headers.clone());
        for name in &NAMES {
            let counted = |view: HeaderView<'_>| view.get_all(name).count();
            assert_eq!(kept.view().get(name), headers.get(name), "{name}");
            assert_eq!(all.view().get(name), headers.get(name), "{name}");
            assert_eq!(kept.view().joined(name), all.view().joined(name), "{name}");
            assert_eq!(counted(kept.view()), counted(all.view()), "{name}");
        }
        assert_eq!(kept.view().joined(&NAMES[0]).as_deref(), Some("a,"));
        assert_eq!(kept.view().joined(&NAMES[2]).as_deref(), Some("b,c"));
        assert_eq!(kept.view().joined(&NAMES[3]), None);
        // Of the same length as one of them.
        assert!(kept.view().get(&other).is_none() && all.view().get(&other).is_some());
    }
    #[test]
    fn names_are_told_apart() {
        let long = |letter: &str| HeaderName::try_from(letter.repeat(100)).expect("a name");
        let names = HeaderNames::from(vec![long("b"), HeaderName::from_static("x-one"), long("b")]);
        assert_eq!(names.iter().map(HeaderName::as_str).collect::<Vec<_>>(), [long("b").as_str(), "x-one"]);
        for (name, expected) in [
            (long("b"), true),
            (long("a"), false),
            (HeaderName::from_static("x-one"), true),
            (HeaderName::from_static("x-two"), false),
            (http::header::HOST, false),
        ] {
            assert_eq!(names.contains(&name), expected, "{name}");
        }
    }
}
