//! What network filters keep of a connection under keys, for route matching and logs.
//!
//! Source: Envoy "Set-Filter-State Network Filter".

use std::sync::Arc;

use super::{Connection, Proxied};
use crate::{
    model::listener::FilterStateRule,
    record::{self, Record},
};

/// Texts by key, and what the PROXY protocol said. Almost every connection has neither, and pays for a pointer only.
#[derive(Debug, Default)]
pub struct FilterState(Option<Box<Texts>>);

#[derive(Debug, Default)]
struct Texts {
    kept: Vec<Kept>,
    proxied: Option<Proxied>,
}

#[derive(Debug)]
struct Kept {
    key: Arc<str>,
    value: String,
    read_only: bool,
}

impl FilterState {
    /// The text under a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        let texts = self.0.as_ref()?;
        texts.kept.iter().find(|kept| *kept.key == *key).map(|kept| kept.value.as_str())
    }

    /// What a header of the PROXY protocol said besides the addresses.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.0.as_ref()?.proxied.as_ref()
    }

    pub(super) fn set_proxied(&mut self, proxied: Proxied) {
        self.0.get_or_insert_default().proxied = Some(proxied);
    }

    fn set(&mut self, rule: &FilterStateRule, value: String) {
        let kept = Kept { key: rule.key.clone(), value, read_only: rule.read_only };
        let texts = self.0.get_or_insert_default();
        match texts.kept.iter_mut().find(|kept| kept.key == rule.key) {
            Some(old) if old.read_only => {}
            Some(old) => *old = kept,
            None => texts.kept.push(kept),
        }
    }
}

/// Applies rules in order.
pub(super) fn apply(connection: &mut Connection, rules: &[FilterStateRule]) {
    for rule in rules {
        let mut value = String::new();
        record::render(&rule.value, &Record::of_connection(connection), &mut value);
        if !(value.is_empty() && rule.skip_if_empty) {
            connection.filter_state.set(rule, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::format::{Format, Part};

    #[test]
    fn the_last_rule_counts_unless_an_earlier_one_is_read_only() {
        let rule = |key: &str, read_only| FilterStateRule {
            key: key.into(),
            value: Format { parts: vec![Part::Text("unused".into())], omit_empty: false },
            read_only,
            skip_if_empty: false,
        };
        let mut state = FilterState::default();
        for (key, read_only, value) in [("a", false, "1"), ("a", true, "2"), ("a", false, "3"), ("b", false, "4")] {
            state.set(&rule(key, read_only), value.into());
        }
        assert_eq!((state.value("a"), state.value("b"), state.value("c")), (Some("2"), Some("4"), None));
    }
}
