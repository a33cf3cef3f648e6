//! Variables in documents: `{{ name }}` (Mustache, as far as kumactl's users need it).

/// Replaces `{{ name }}` by the variable of that name.
///
/// # Errors
/// A text naming the variable that is not given, or the place where braces are not closed.
pub(super) fn render(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let mut rendered = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        rendered.push_str(before);
        let line = || text.get(..text.len().saturating_sub(after.len())).unwrap_or_default().lines().count();
        let (name, next) = after.split_once("}}").ok_or_else(|| format!("line {}: \"{{{{\" is not closed", line()))?;
        let name = name.trim();
        let (_, value) = variables.iter().rev().find(|(known, _)| known == name).ok_or_else(|| {
            format!("line {}: variable {name:?} is not given; give it with --var {name}=VALUE", line())
        })?;
        rendered.push_str(value);
        rest = next;
    }
    rendered.push_str(rest);
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_or_named() {
        let variables = [("name".to_owned(), "web".to_owned()), ("ip".to_owned(), "10.0.0.1".to_owned())];
        assert_eq!(render("a: {{ name }}\nb: {{ip}}:80\n", &variables), Ok("a: web\nb: 10.0.0.1:80\n".to_owned()));
        assert_eq!(render("plain: {a}", &variables), Ok("plain: {a}".to_owned()));
        let missing = render("a: 1\nb: {{ port }}", &variables);
        assert_eq!(missing, Err("line 2: variable \"port\" is not given; give it with --var port=VALUE".to_owned()));
        assert_eq!(render("a: {{ name", &variables), Err("line 1: \"{{\" is not closed".to_owned()));
    }
}
