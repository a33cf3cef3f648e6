//! Fields that may be set and are passed over, because nothing that decides who may talk, where traffic goes or which bytes are sent depends on them.

use std::{collections::BTreeMap, sync::LazyLock};

use foldhash::HashMap;
use shika_proto::walk::{Found, WalkError, walk};

use crate::{compile::Fault, support};

/// Distinct fields that are listed; more are counted together.
const MOST_FIELDS: usize = 1_024;

/// One field that was set and passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// In how many accepted resources since the start.
    pub count: u64,
    /// Type and name of the first resource, and the path in it.
    pub example: String,
    /// Why passing it over is harmless; for a field unknown to the schema, that it is unknown.
    pub why: &'static str,
}

/// The fields passed over so far, by message and field: `envoy.config.route.v3.Route.decorator`.
#[derive(Debug, Default)]
pub struct HarmlessSeen {
    fields: BTreeMap<String, Seen>,
    unlisted: u64,
}

impl HarmlessSeen {
    /// Counts one.
    pub(crate) fn note(&mut self, field: &str, example: impl FnOnce() -> String, why: &'static str) {
        if let Some(seen) = self.fields.get_mut(field) {
            seen.count += 1;
        } else if self.fields.len() < MOST_FIELDS {
            self.fields.insert(field.to_owned(), Seen { count: 1, example: example(), why });
        } else {
            self.unlisted += 1;
        }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Seen)> {
        self.fields.iter().map(|(field, seen)| (field.as_str(), seen))
    }

    /// How often a field was met that is not listed because there were too many different ones.
    pub fn unlisted(&self) -> u64 {
        self.unlisted
    }
}

/// Most refusals that are listed for one resource.
const MOST_FAULTS: usize = 16;
/// Why a field that the schema does not know is passed over.
const UNKNOWN: &str = "unknown to the schema; refused with --reject-unknown-dynamic-fields";

/// What the table says of one field.
#[derive(Clone, Copy)]
enum Verdict {
    Honoured,
    Harmless(&'static str),
    Refused(&'static str),
}

type Fields = HashMap<&'static str, Verdict>;

static TABLE: LazyLock<HashMap<&'static str, Fields>> = LazyLock::new(|| {
    support::table()
        .map(|message| {
            let honoured = message.honoured.split_whitespace().map(|field| (field, Verdict::Honoured));
            let harmless = message.harmless.iter().map(|(field, why)| (*field, Verdict::Harmless(why)));
            let refused = message.refused.iter().map(|(field, why)| (*field, Verdict::Refused(why)));
            (message.name, honoured.chain(harmless).chain(refused).collect())
        })
        .collect()
});

/// Checks every set field of an encoded resource against the table. Harmless fields come back with the message and field, their path and why; a resource
/// that is refused anyway does not count them.
pub(crate) fn check(full_name: &str, bytes: &[u8], refuse_unknown: bool) -> Result<Vec<Passed>, Vec<Fault>> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut passed: Vec<Passed> = Vec::new();
    // Below a field that is refused or passed over, nothing more is to be said.
    let mut settled: Option<String> = None;
    let walked = walk(full_name, bytes, &mut |found, path| {
        if faults.len() >= MOST_FAULTS {
            return;
        }
        let verdict = match found {
            Found::Set { message, field } => match TABLE.get(message) {
                Some(fields) => fields.get(field).copied().unwrap_or(Verdict::Refused("is not supported")),
                None => Verdict::Refused(""),
            },
            // Whether the field that holds it is one that may be passed over is decided by the compiler: it asks for a type it knows.
            Found::UnknownType { .. } => return,
            Found::UnknownField { .. } if !refuse_unknown => Verdict::Harmless(UNKNOWN),
            Found::UnknownField { .. } => Verdict::Refused("the field is unknown to the schema"),
        };
        if matches!(verdict, Verdict::Honoured) && settled.is_none() {
            return;
        }
        let mut at = path.to_string();
        if let Found::UnknownField { number, .. } = found {
            let dot = if at.is_empty() { "" } else { "." };
            at.push_str(&format!("{dot}#{number}"));
        }
        if let Some(above) = &settled {
            if at.strip_prefix(above.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])) {
                return;
            }
            settled = None;
        }
        match verdict {
            Verdict::Honoured => {}
            Verdict::Harmless(why) => {
                let field = match found {
                    Found::Set { message, field } => format!("{message}.{field}"),
                    Found::UnknownField { message, number } => format!("{message}.#{number}"),
                    Found::UnknownType { .. } => return,
                };
                settled = Some(at.clone());
                if passed.len() < MOST_FIELDS {
                    passed.push(Passed { field, path: at, why });
                }
            }
            Verdict::Refused(why) => {
                let fault = match found {
                    Found::Set { message, field } if why.is_empty() => {
                        // The whole message is unknown to the table: the fault is with the field that holds it.
                        let above = at.len().saturating_sub(field.len());
                        let holder = at.get(..above).unwrap_or_default().trim_end_matches('.').to_owned();
                        Fault::new(holder, format!("{message} is not supported"))
                    }
                    _ => Fault::new(at, why),
                };
                settled = Some(fault.path.clone());
                faults.push(fault);
            }
        }
    });
    if let Err(error) = walked {
        faults.push(match error {
            WalkError::Malformed { path } => Fault::new(path, "malformed message"),
            WalkError::TooDeep { path } => Fault::new(path, "messages are nested too deeply"),
            WalkError::UnknownMessage(_) => Fault::new("", error.to_string()),
        });
    }
    if faults.is_empty() { Ok(passed) } else { Err(faults) }
}

/// A harmless field that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Message and field.
    pub field: String,
    /// Where.
    pub path: String,
    /// Why it is harmless.
    pub why: &'static str,
}

#[cfg(test)]
#[path = "harmless_tests.rs"]
mod tests;
