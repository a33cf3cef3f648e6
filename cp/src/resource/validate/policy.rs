//! What the rules for policies have in common: the shape of `to`, `from` and `rules`, and checks of single values
//! (Kuma `pkg/core/validators/common_validators.go`).

use super::Violation;
use crate::resource::{GoDuration, IntOrString};

/// Collects what is wrong below one path.
pub(super) struct At<'a> {
    path: String,
    violations: &'a mut Vec<Violation>,
}

impl<'a> At<'a> {
    /// Below this path.
    pub(super) fn new(path: impl Into<String>, violations: &'a mut Vec<Violation>) -> Self {
        At { path: path.into(), violations }
    }

    /// Below a field of it.
    pub(super) fn field(&mut self, name: &str) -> At<'_> {
        At { path: self.join(name), violations: self.violations }
    }

    /// Below an entry of a list field of it.
    pub(super) fn entry(&mut self, name: &str, index: usize) -> At<'_> {
        At { path: format!("{}[{index}]", self.join(name)), violations: self.violations }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The path.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where else the violations go, for checks that take path and list.
    pub(super) fn list(&mut self) -> &mut Vec<Violation> {
        self.violations
    }

    /// Something is wrong with the thing itself.
    pub(super) fn wrong(&mut self, message: impl Into<String>) {
        self.violations.push(Violation::new(self.path.clone(), message));
    }

    /// Something is wrong with a field of it.
    pub(super) fn wrong_field(&mut self, name: &str, message: impl Into<String>) {
        self.violations.push(Violation::new(self.join(name), message));
    }

    /// A duration that must not be negative.
    pub(super) fn not_negative(&mut self, name: &str, value: Option<GoDuration>) {
        if value.is_some_and(GoDuration::is_negative) {
            self.wrong_field(name, "must not be negative when defined");
        }
    }

    /// A duration that must be positive.
    pub(super) fn positive(&mut self, name: &str, value: Option<GoDuration>) {
        if value.is_some_and(|value| value.is_negative() || value.is_zero()) {
            self.wrong_field(name, "must be greater than zero when defined");
        }
    }

    /// A number that must be positive.
    pub(super) fn above_zero(&mut self, name: &str, value: Option<u32>) {
        if value == Some(0) {
            self.wrong_field(name, "must be greater than 0");
        }
    }

    /// A whole number of per cent.
    pub(super) fn percentage(&mut self, name: &str, value: Option<u32>) {
        if value.is_some_and(|value| value > 100) {
            self.wrong_field(name, "must be in inclusive range [0, 100]");
        }
    }

    /// Per cent with decimal places.
    pub(super) fn decimal_percentage(&mut self, name: &str, value: Option<&IntOrString>) {
        match value.map(IntOrString::number) {
            None => {}
            Some(None) => self.wrong_field(name, "string must be a valid number"),
            Some(Some(value)) if !(0.0..=100.0).contains(&value) => {
                self.wrong_field(name, "must be in inclusive range [0.0, 100.0]");
            }
            Some(Some(_)) => {}
        }
    }

    /// An expression that the proxy compiles; Kuma leaves a wrong one to Envoy, which then refuses the whole listener.
    pub(super) fn expression(&mut self, name: &str, text: &str) {
        if let Err(error) = regex::Regex::new(text) {
            // The last line says what is wrong; those before it draw the expression.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            self.wrong_field(name, format!("invalid regular expression: {reason}"));
        }
    }
}
