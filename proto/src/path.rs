//! Where in a message something is: `static_resources.listeners[0].filter_chains[0]`.

use std::fmt;

/// Longest piece of text from outside that a path or a reason repeats.
const LONGEST_QUOTE: usize = 128;

/// The way from the outermost message to a field, outermost first.
///
/// Displays as Envoy writes field paths: names as in the .proto files, list positions in brackets, map keys quoted in
/// brackets. An `Any` adds no step of its own: its content's fields follow the field that holds it.
#[derive(Clone, Debug, Default)]
pub struct FieldPath<'a> {
    steps: Vec<Step<'a>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> FieldPath<'a> {
    pub(crate) fn push(&mut self, step: Step<'a>) {
        self.steps.push(step);
    }

    pub(crate) fn pop(&mut self) {
        self.steps.pop();
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            match step {
                Step::Field(name) if is_plain(name) => {
                    if i > 0 {
                        f.write_str(".")?;
                    }
                    f.write_str(name)?;
                }
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Field(key) | Step::Key(key) => write!(f, "[{}]", quote(key))?,
            }
        }
        Ok(())
    }
}

/// A name that needs no quotes; a key that somebody mistook for a field may hold anything.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_QUOTE
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'@' | b'#'))
}

/// Text from outside in quotes, escaped and cut to a bearable length.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display() {
        let path = FieldPath {
            steps: vec![
                Step::Field("a"),
                Step::Index(3),
                Step::Field("b_c"),
                Step::Key("envoy.lb"),
                Step::Field("@type"),
                Step::Field("x\ny"),
            ],
        };
        assert_eq!(path.to_string(), r#"a[3].b_c["envoy.lb"].@type["x\ny"]"#);
        assert_eq!(FieldPath::default().to_string(), "");
        assert_eq!(quote(&"ä".repeat(500)).chars().count(), LONGEST_QUOTE + 3);
    }
}
