//! Variables in a Dataplane resource: `{{ name }}`, with dots in names.
//!
//! Source: kuma-dp's `--dataplane-var` (Mustache variables). Sections and partials have no use in a Dataplane and are refused.

/// Puts values in place of variables.
///
/// # Errors
/// A variable without value, or a tag that is not a variable; each with its line.
pub fn render(text: &str, variables: &[(&str, &str)]) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let line = || {
            text.len()
                .checked_sub(after.len())
                .and_then(|end| text.get(..end))
                .map_or(1, |head| head.lines().count().max(1))
        };
        let triple = after.starts_with('{');
        let (tag, tail) =
            if triple { after.get(1..).and_then(|inner| inner.split_once("}}}")) } else { after.split_once("}}") }
                .ok_or_else(|| format!("line {}: a '{{{{' is not closed", line()))?;
        rest = tail;
        let name = tag.trim().trim_start_matches('&').trim();
        match name.chars().next() {
            Some('!') => continue,
            Some('#' | '^' | '/' | '>' | '=') => {
                return Err(format!("line {}: '{{{{{name}}}}}': only variables are supported", line()));
            }
            Some(_) => {}
            None => return Err(format!("line {}: '{{{{}}}}' names no variable", line())),
        }
        let value =
            variables.iter().rev().find(|(known, _)| *known == name).ok_or_else(|| {
                format!("line {}: variable '{name}' has no value; pass --dataplane-var {name}=…", line())
            })?;
        out.push_str(value.1);
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_place() {
        let variables = [("name", "a"), ("net.address", "10.0.0.1"), ("name", "b")];
        assert_eq!(
            render("name: {{ name }}\naddress: {{net.address}}\nraw: {{{name}}}{{! said }}\nplain: { x }", &variables),
            Ok("name: b\naddress: 10.0.0.1\nraw: b\nplain: { x }".into())
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, needle) in [
            ("a\nb: {{ missing }}", "line 2: variable 'missing' has no value"),
            ("{{#each}}{{/each}}", "line 1: '{{#each}}': only variables"),
            ("x: {{ open", "is not closed"),
            ("x: {{}}", "names no variable"),
        ] {
            let error = render(text, &[]).expect_err("an error");
            assert!(error.contains(needle), "{error}");
        }
    }
}
