//! What a resource is refused with.

use std::fmt;

use shika_proto::type_url;

/// A resource that was refused, and why. The last accepted version of it stays in force.
///
/// Displays as `<type> "<name>": <field path>: <reason>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Short type and name: `Listener/inbound`.
    pub resource: String,
    /// Type URL of the resource.
    pub type_url: String,
    /// Name of the resource; empty if it could not be read.
    pub name: String,
    /// Where in the resource, such as `filter_chains[0].filters[1].typed_config.stat_prefix`. Empty for the resource as a whole.
    pub field_path: String,
    /// What is wrong there, and what would be right.
    pub reason: String,
}

impl Reject {
    /// A refusal of the resource `name` of type `type_url`.
    pub fn new(type_url: &str, name: &str, field_path: impl Into<String>, reason: impl Into<String>) -> Self {
        Reject {
            resource: format!("{}/{name}", short_type(type_url)),
            type_url: type_url.to_owned(),
            name: name.to_owned(),
            field_path: field_path.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: ", short_type(&self.type_url), self.name)?;
        if !self.field_path.is_empty() {
            write!(f, "{}: ", self.field_path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Reject {}

/// The last part of a type's full name: `Cluster`.
pub(crate) fn short_type(type_url: &str) -> &str {
    let name = type_url::message_name(type_url).unwrap_or(type_url);
    name.rsplit('.').next().unwrap_or(name)
}

/// Longest error text sent in a NACK, bytes; further refusals are counted only.
const LONGEST_DETAIL: usize = 4096;

/// One text for all refusals of a response, for `error_detail`. Bounded; what is left out is counted.
pub fn summary(rejects: &[Reject]) -> String {
    let mut text = String::new();
    for (index, reject) in rejects.iter().enumerate() {
        let line = reject.to_string();
        if !text.is_empty() && text.len() + line.len() > LONGEST_DETAIL {
            text.push_str(&format!("; and {} more", rejects.len() - index));
            break;
        }
        if index > 0 {
            text.push_str("; ");
        }
        text.extend(line.chars().take(LONGEST_DETAIL));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_summary() {
        let reject = Reject::new(type_url::CLUSTER, "a", "connect_timeout", "must be greater than 0s");
        assert_eq!(reject.to_string(), "Cluster \"a\": connect_timeout: must be greater than 0s");
        assert_eq!(reject.resource, "Cluster/a");
        let whole = Reject::new(type_url::CLUSTER, "b", "", "duplicate");
        assert_eq!(whole.to_string(), "Cluster \"b\": duplicate");
        assert_eq!(
            summary(&[reject.clone(), whole]),
            "Cluster \"a\": connect_timeout: must be greater than 0s; Cluster \"b\": duplicate"
        );
        let many = summary(&vec![reject; 1_000]);
        assert!(many.len() < LONGEST_DETAIL + 100, "{}", many.len());
        assert!(many.ends_with(" more"));
    }
}
