//! Metadata of endpoints, and what routes ask of it.
//!
//! Source: Envoy `core.v3.Metadata`, namespaces `envoy.lb` and `envoy.transport_socket_match`.

/// Key and value pairs of one namespace, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Vec<(Box<str>, Label)>);

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// Text.
    Text(Box<str>),
    /// The bits of a number.
    Number(u64),
    /// Truth.
    Bool(bool),
    /// Nothing.
    Null,
    /// Several values.
    List(Vec<Label>),
    /// Key and value pairs.
    Struct(Labels),
}

impl Labels {
    /// Of pairs in any order; of equal keys the last counts.
    pub fn new(pairs: impl IntoIterator<Item = (Box<str>, Label)>) -> Self {
        let mut labels = Labels::default();
        for (key, value) in pairs {
            labels.put(key, value);
        }
        labels
    }

    fn put(&mut self, key: Box<str>, value: Label) {
        match self.0.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    /// These, and those of `more`, which win.
    pub fn with(mut self, more: &Labels) -> Self {
        for (key, value) in &more.0 {
            self.put(key.clone(), value.clone());
        }
        self
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Label> {
        let at = self.0.binary_search_by(|(other, _)| (**other).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Whether every pair of `wanted` is here.
    pub fn holds(&self, wanted: &Labels) -> bool {
        wanted.0.iter().all(|(key, value)| self.value(key) == Some(value))
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|(key, _)| &**key)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), Label::Text((*value).into()))))
    }

    #[test]
    fn all_that_is_wanted_has_to_be_there() {
        let have = labels(&[("version", "v1"), ("region", "eu")]);
        for (wanted, held) in [
            (labels(&[]), true),
            (labels(&[("region", "eu")]), true),
            (labels(&[("region", "eu"), ("version", "v1")]), true),
            (labels(&[("region", "us")]), false),
            (labels(&[("region", "eu"), ("zone", "a")]), false),
        ] {
            assert_eq!(have.holds(&wanted), held, "{wanted:?}");
        }
        assert_eq!(have.keys().collect::<Vec<_>>(), ["region", "version"]);
        assert_eq!(labels(&[("a", "1"), ("b", "2")]).with(&labels(&[("b", "3")])), labels(&[("a", "1"), ("b", "3")]));
    }
}
