//! YAML documents as Envoy reads them.
//!
//! What a plain scalar means follows Envoy (`source/common/protobuf/yaml_utility.cc`, which uses yaml-cpp), not YAML
//! 1.2: `yes`, `on` and `y` are booleans, `0x1f` and `017` are numbers, a decimal fraction is text until a field wants a
//! number, and whatever is quoted or in a block is text. Beyond Envoy, merge keys (`<<: *anchor`) are applied, and a
//! second document is an error where Envoy ignores it.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::Value;

use super::node::Node;

/// Deepest nesting of lists and maps, aliases expanded.
const MAX_LEVELS: usize = 128;
/// Most values that aliases may expand to altogether, against documents that explode.
const MAX_ALIASED: usize = 1_000_000;
/// Largest integer that a JSON number holds without loss; larger ones are text, as in Envoy.
const MAX_EXACT: u64 = (1 << 53) - 2;

/// Reads one document. `Err` is the reason, with line and column.
pub(crate) fn parse(text: &str) -> Result<Node<'_>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The parser counts characters, so only among those of one byte each it says where in the text something stands.
    let mut loader = Loader { source: if text.is_ascii() { text } else { "" }, ..Loader::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| at(error.marker().line(), error.marker().col(), error.info()))?;
        loader.event(event, span.start.index()).map_err(|reason| at(span.start.line(), span.start.col(), &reason))?;
    }
    let mut root = loader.root.unwrap_or(Node::Null);
    if loader.merges {
        root.merge_keys()?;
    }
    Ok(root)
}

/// Writes a document in block style. Text stands without quotes only where no reader of YAML, old or new, could take it
/// for anything else.
pub(crate) fn print(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => print_map(&mut out, map, 0),
        Value::Array(list) if !list.is_empty() => print_list(&mut out, list, 0),
        scalar => print_inline(&mut out, scalar),
    }
    out
}

fn print_map(out: &mut String, map: &serde_json::Map<String, Value>, indent: usize) {
    for (i, (key, value)) in map.iter().enumerate() {
        if i > 0 {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        print_text(out, key);
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent + 2));
                print_map(out, map, indent + 2);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent));
                print_list(out, list, indent);
            }
            scalar => {
                out.push(' ');
                print_inline(out, scalar);
            }
        }
    }
}

fn print_list(out: &mut String, list: &[Value], indent: usize) {
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => print_map(out, map, indent + 2),
            Value::Array(list) if !list.is_empty() => print_list(out, list, indent + 2),
            scalar => print_inline(out, scalar),
        }
    }
}

/// A value that ends its line.
fn print_inline(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => print_text(out, text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            out.push_str(&value.to_string());
        }
    }
    out.push('\n');
}

fn print_text(out: &mut String, text: &str) {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'));
    let harmless = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
    let meant = || matches!(scalar(Cow::Borrowed(text), ScalarStyle::Plain, None), Node::Text(_));
    if begins && text.bytes().all(harmless) && meant() {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            // Control characters, other line ends and the byte order mark may not stand as they are.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn at(line: usize, column: usize, reason: &str) -> String {
    format!("line {line} column {}: {reason}", column + 1)
}

#[derive(Default)]
struct Loader<'a> {
    /// The document, or nothing where it cannot be pointed into.
    source: &'a str,
    /// There is a merge key.
    merges: bool,
    root: Option<Node<'a>>,
    open: Vec<Open<'a>>,
    /// Items of all open lists, then entries of all open maps: the innermost one's last. Each gets memory once, when its number is known.
    items: Vec<Node<'a>>,
    entries: Vec<(Cow<'a, str>, Node<'a>)>,
    anchors: HashMap<usize, Anchor<'a>>,
    aliased: usize,
}

/// A list or map whose end is still to come: where its items or entries start, and the number of its anchor (0 for none).
enum Open<'a> {
    List(usize, usize),
    Map(usize, Option<Cow<'a, str>>, usize),
}

struct Anchor<'a> {
    node: Node<'a>,
    values: usize,
    levels: usize,
}

impl<'a> Loader<'a> {
    /// Takes what begins at the character `start`.
    fn event(&mut self, event: Event<'a>, start: usize) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => Err("a second document: only one is read".into()),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text = self.in_place(text, start);
                let node = match scalar(text.clone(), style, tag.as_deref()) {
                    Node::Null => Node::Null,
                    // A key is text, whatever it would be as a value: `y: 1` has the key `y`.
                    _ if self.wants_key() => Node::Text(text),
                    node => node,
                };
                self.value(node, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(Open::List(self.items.len(), anchor)),
            Event::MappingStart(anchor, _) => self.open(Open::Map(self.entries.len(), None, anchor)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(start, anchor)) => {
                    let items = self.items.drain(start..).collect();
                    self.value(Node::List(items), anchor)
                }
                Some(Open::Map(start, _, anchor)) => {
                    let entries = self.entries.drain(start..).collect();
                    self.value(Node::Map(entries), anchor)
                }
                None => Err("an end without a beginning".into()),
            },
            Event::Alias(anchor) => {
                let anchor = self.anchors.get(&anchor).ok_or("an alias inside its own anchor")?;
                self.aliased += anchor.values;
                if self.aliased > MAX_ALIASED {
                    return Err(format!("aliases expand to more than {MAX_ALIASED} values"));
                }
                if self.open.len() + anchor.levels > MAX_LEVELS {
                    return Err(too_deep());
                }
                let node = anchor.node.clone();
                self.value(node, 0)
            }
        }
    }

    /// The same text as a part of the document, where it stands there as it is: most does, and needs no memory of its own.
    fn in_place(&self, text: Cow<'a, str>, start: usize) -> Cow<'a, str> {
        match self.source.get(start..start + text.len()) {
            Some(there) if there == text => Cow::Borrowed(there),
            _ => text,
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Map(_, None, _)))
    }

    fn open(&mut self, open: Open<'a>) -> Result<(), String> {
        if self.open.len() >= MAX_LEVELS {
            return Err(too_deep());
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a finished value where it belongs: as the document, an item, a key or a key's value.
    fn value(&mut self, node: Node<'a>, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            let (values, levels) = extent(&node);
            self.anchors.insert(anchor, Anchor { node: node.clone(), values, levels });
            self.aliased += values;
            if self.aliased > MAX_ALIASED {
                return Err(format!("anchors hold more than {MAX_ALIASED} values"));
            }
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(..)) => self.items.push(node),
            Some(Open::Map(_, pending, _)) => match pending.take() {
                Some(key) => self.entries.push((key, node)),
                None => {
                    let key = key(node)?;
                    self.merges |= key == "<<";
                    *pending = Some(key);
                }
            },
        }
        Ok(())
    }
}

/// Values in a tree, and its levels.
fn extent(node: &Node<'_>) -> (usize, usize) {
    let total = |(values, levels): (usize, usize), item: &Node<'_>| {
        let (more, deeper) = extent(item);
        (values + more, levels.max(deeper + 1))
    };
    match node {
        Node::List(items) => items.iter().fold((1, 1), total),
        Node::Map(entries) => entries.iter().map(|(_, item)| item).fold((1, 1), total),
        _ => (1, 0),
    }
}

fn too_deep() -> String {
    format!("lists and maps are nested deeper than {MAX_LEVELS} levels")
}

/// The key that a value makes: text as it is, null by its name; other scalars come here only by an alias.
fn key(node: Node<'_>) -> Result<Cow<'_, str>, String> {
    Ok(match node {
        Node::Text(text) => text,
        Node::Null => Cow::Borrowed("null"),
        Node::Bool(value) => Cow::Owned(value.to_string()),
        Node::Signed(value) => Cow::Owned(value.to_string()),
        Node::Unsigned(value) => Cow::Owned(value.to_string()),
        Node::Float(value) => Cow::Owned(value.to_string()),
        Node::List(_) | Node::Map(_) => return Err("a map's key must be a scalar".into()),
    })
}

fn scalar<'a>(text: Cow<'a, str>, style: ScalarStyle, tag: Option<&Tag>) -> Node<'a> {
    let told = tag.is_some_and(|tag| (tag.is_yaml_core_schema() && tag.suffix == "str") || is_non_specific(tag));
    if style != ScalarStyle::Plain || told {
        return Node::Text(text);
    }
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Node::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Node::Bool(false);
        }
        _ => {}
    }
    match integer(&text) {
        Some(number) if number.unsigned_abs() <= MAX_EXACT => match u64::try_from(number) {
            Ok(number) => Node::Unsigned(number),
            Err(_) => Node::Signed(number),
        },
        Some(number) => Node::Text(Cow::Owned(number.to_string())),
        None => Node::Text(text),
    }
}

/// The tag `!`, which asks for text.
fn is_non_specific(tag: &Tag) -> bool {
    format!("{}{}", tag.handle, tag.suffix) == "!"
}

/// A 64-bit integer in the form of C: decimal, hexadecimal after `0x`, octal after `0`.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (digits.get(2..)?, 16),
        [b'0', _, ..] => (digits.get(1..)?, 8),
        _ => (digits, 10),
    };
    // from_str_radix takes a second sign.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> Node<'_> {
        Node::Text(Cow::Borrowed(text))
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_envoy() {
        let cases = [
            ("~", Node::Null),
            ("yes", Node::Bool(true)),
            ("yEs", text("yEs")),
            ("Off", Node::Bool(false)),
            ("'yes'", text("yes")),
            ("5", Node::Unsigned(5)),
            ("'5'", text("5")),
            ("!!str 5", text("5")),
            ("! 5", text("5")),
            ("!custom 5", Node::Unsigned(5)),
            ("|-\n  5", text("5")),
            ("+5", Node::Unsigned(5)),
            ("-5", Node::Signed(-5)),
            ("0x1F", Node::Unsigned(31)),
            ("0644", Node::Unsigned(420)),
            ("08", text("08")),
            ("1.5", text("1.5")),
            ("1.10", text("1.10")),
            ("1e3", text("1e3")),
            (".inf", text(".inf")),
            ("1_000", text("1_000")),
            ("9007199254740990", Node::Unsigned(9_007_199_254_740_990)),
            ("9007199254740991", text("9007199254740991")),
            ("99999999999999999999", text("99999999999999999999")),
            ("2024-01-01", text("2024-01-01")),
            ("--5", text("--5")),
            ("0x", text("0x")),
            ("", Node::Null),
            ("# nothing", Node::Null),
            ("\u{feff}a", text("a")),
        ];
        for (document, node) in cases {
            assert_eq!(parse(document), Ok(node), "{document:?}");
        }
    }

    #[test]
    fn keys_are_text() {
        let node = parse("{0x5: a, y: b, ~: c, 1.5: d}").expect("read");
        let Node::Map(entries) = node else { unreachable!("a map") };
        assert_eq!(entries.iter().map(|(key, _)| key.as_ref()).collect::<Vec<_>>(), ["0x5", "y", "null", "1.5"]);
        assert_eq!(parse("{[a]: b}"), Err("line 1 column 4: a map's key must be a scalar".into()));
    }

    #[test]
    fn refuses_documents_that_explode() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..20 {
            let alias = format!("*a{}", i - 1);
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![alias; 10].join(", "));
        }
        assert!(parse(&bomb).expect_err("a bomb").contains("more than 1000000 values"));

        let mut deep = "a0: &a0 []\n".to_owned();
        for i in 1..200 {
            deep += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        assert!(parse(&deep).expect_err("deep").contains("nested deeper"));
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse("a: &a [*a]").is_err());
    }

    #[test]
    fn prints_block_style() {
        let value = json!({"a": {"b": [1, {"c": "d e", "f": {}}, [], [["x", null], true]]}, "g": "/h/i.j", "no": -1.5});
        let printed = "\
a:
  b:
  - 1
  - c: \"d e\"
    f: {}
  - []
  - - - x
      - null
    - true
g: /h/i.j
\"no\": -1.5
";
        assert_eq!(print(&value), printed);
        assert_eq!(print(&json!({})), "{}\n");
        assert_eq!(print(&json!("x")), "x\n");
    }
}
