//! JSON with Envoy's indentation of one space, written piece by piece.

use serde_json::Value;

/// Appends a value whose first line is already indented; `depth` is that of the line it stands on.
pub fn pretty(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push_str("[\n");
            for (index, item) in items.iter().enumerate() {
                indent(depth + 1, out);
                pretty(item, depth + 1, out);
                out.push_str(if index + 1 < items.len() { ",\n" } else { "\n" });
            }
            indent(depth, out);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            out.push_str("{\n");
            for (index, (name, field)) in fields.iter().enumerate() {
                indent(depth + 1, out);
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(": ");
                pretty(field, depth + 1, out);
                out.push_str(if index + 1 < fields.len() { ",\n" } else { "\n" });
            }
            indent(depth, out);
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            out.push_str(&value.to_string())
        }
    }
}

/// A whole document, with the line break that Envoy puts behind it.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    pretty(value, 0, &mut out);
    out.push('\n');
    out
}

/// Appends one space per level.
pub fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', depth));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn one_space_per_level() {
        let text = super::document(&json!({"a": [], "b": {"c": [1, "x\"y"]}, "d": {}}));
        assert_eq!(text, "{\n \"a\": [],\n \"b\": {\n  \"c\": [\n   1,\n   \"x\\\"y\"\n  ]\n },\n \"d\": {}\n}\n");
    }
}
