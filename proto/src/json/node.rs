//! A JSON or YAML document as a tree that keeps what the usual trees lose: duplicate keys and the order of keys.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::MAX_DEPTH;
use crate::path::quote;

/// One value of a document; text is borrowed from the document where it has no escapes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Map(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// Borrows a tree of serde_json; `Err` when it is nested deeper than a parsed document can be.
    pub(crate) fn of_value(value: &'a Value, depth: usize) -> Result<Node<'a>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        Ok(match value {
            Value::Null => Node::Null,
            Value::Bool(value) => Node::Bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => Node::Unsigned(value),
                (None, Some(value)) => Node::Signed(value),
                (None, None) => Node::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Node::Text(Cow::Borrowed(text)),
            Value::Array(list) => {
                Node::List(list.iter().map(|item| Node::of_value(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => {
                let entry = |(key, item): (&'a String, &'a Value)| {
                    Ok::<_, String>((Cow::Borrowed(key.as_str()), Node::of_value(item, depth + 1)?))
                };
                Node::Map(map.iter().map(entry).collect::<Result<_, _>>()?)
            }
        })
    }

    /// Applies YAML's merge keys (`<<: *anchor`), innermost first: the entries of the merged maps are added unless the
    /// map has the key itself; among several merged maps the first wins. Source: <https://yaml.org/type/merge.html>.
    pub(crate) fn merge_keys(&mut self) -> Result<(), String> {
        match self {
            Node::List(list) => list.iter_mut().try_for_each(Node::merge_keys),
            Node::Map(entries) => {
                entries.iter_mut().try_for_each(|(_, node)| node.merge_keys())?;
                if !entries.iter().any(|(key, _)| key == "<<") {
                    return Ok(());
                }
                let (merged, mut own): (Vec<_>, Vec<_>) =
                    std::mem::take(entries).into_iter().partition(|(key, _)| key == "<<");
                for (_, source) in merged {
                    let maps = match source {
                        Node::List(maps) => maps,
                        other => vec![other],
                    };
                    for map in maps {
                        let Node::Map(more) = map else {
                            return Err(format!(
                                "YAML merge key `<<` takes a map or a list of maps, found {}",
                                map.describe()
                            ));
                        };
                        for (key, node) in more {
                            if !own.iter().any(|(known, _)| *known == key) {
                                own.push((key, node));
                            }
                        }
                    }
                }
                *entries = own;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What an error message calls this value.
    pub(crate) fn describe(&self) -> String {
        match self {
            Node::Null => "null".into(),
            Node::Bool(value) => format!("boolean {value}"),
            Node::Signed(value) => format!("number {value}"),
            Node::Unsigned(value) => format!("number {value}"),
            Node::Float(value) => format!("number {value}"),
            Node::Text(text) => format!("string {}", quote(text)),
            Node::List(_) => "a list".into(),
            Node::Map(_) => "an object".into(),
        }
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(u64::try_from(value).map_or(Node::Signed(value), Node::Unsigned))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut map = Vec::new();
        while let Some((Key(key), item)) = items.next_entry()? {
            map.push((key, item));
        }
        Ok(Node::Map(map))
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Text(text) => Ok(Key(text)),
            other => Err(D::Error::custom(format!("a key must be a string, found {}", other.describe()))),
        }
    }
}
