//! CEL, as far as access log filters need it: attributes of a connection or request compared with literals, joined by `&&`, `||`, `!` and parentheses.
//!
//! Source: the Common Expression Language's specification, "Syntax"; Envoy "Attributes".

use shika_data::model::{
    access_log::{Attribute, Expression, NumberAttribute, Relation},
    matcher::{HeaderRef, StringMatcher, full_match_regex},
};

use super::matcher;

/// Deepest nesting.
const DEEPEST: usize = 32;

/// An expression; the error says what is wrong with it.
pub(super) fn expression(text: &str) -> Result<Expression, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let expression = parser.any_of(0)?;
    match parser.next() {
        None => Ok(expression),
        Some(token) => Err(format!("does not go on with {token:?}")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Number(u64),
    Sign(&'static str),
}

const SIGNS: [&str; 14] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", "."];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if first.is_ascii_digit() {
            let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
            tokens.push(Token::Number(digits.parse().map_err(|_| format!("{digits} is too large"))?));
            rest = after;
        } else if is_word(first) {
            let (word, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
            tokens.push(Token::Word(word.to_owned()));
            rest = after;
        } else if matches!(first, '"' | '\'') {
            let (literal, after) = literal(&rest[1..], first)?;
            tokens.push(Token::Text(literal));
            rest = after;
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(*sign)) {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else {
            return Err(format!("{first:?} is not supported"));
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// A literal whose opening quote is gone, and what follows it.
fn literal(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut literal = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((literal, &text[at + c.len_utf8()..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => literal.push('\n'),
                Some((_, 't')) => literal.push('\t'),
                Some((_, 'r')) => literal.push('\r'),
                Some((_, c @ ('\\' | '"' | '\'' | '?' | '`'))) => literal.push(c),
                _ => return Err("an escape in a text is not supported".to_owned()),
            },
            c => literal.push(c),
        }
    }
    Err("a text has no end".to_owned())
}

/// What a comparison is about.
enum Subject {
    Text(Attribute),
    Number(NumberAttribute),
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("has no {sign:?} where one is due")) }
    }

    fn any_of(&mut self, depth: usize) -> Result<Expression, String> {
        let mut parts = vec![self.all_of(depth)?];
        while self.takes("||") {
            parts.push(self.all_of(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Or(parts) })
    }

    fn all_of(&mut self, depth: usize) -> Result<Expression, String> {
        let mut parts = vec![self.one(depth)?];
        while self.takes("&&") {
            parts.push(self.one(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::And(parts) })
    }

    fn one(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > DEEPEST {
            return Err(format!("is nested deeper than {DEEPEST} levels"));
        }
        if self.takes("!") {
            return Ok(Expression::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes("(") {
            let inner = self.any_of(depth + 1)?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.subject()? {
            Subject::Number(attribute) => {
                let relation = match self.next() {
                    Some(Token::Sign("==")) => Relation::Equal,
                    Some(Token::Sign("!=")) => Relation::NotEqual,
                    Some(Token::Sign("<")) => Relation::Less,
                    Some(Token::Sign("<=")) => Relation::AtMost,
                    Some(Token::Sign(">")) => Relation::Greater,
                    Some(Token::Sign(">=")) => Relation::AtLeast,
                    other => return Err(format!("a number is compared with ==, !=, <, <=, > or >=, not {other:?}")),
                };
                match self.next() {
                    Some(Token::Number(number)) => Ok(Expression::Number(attribute, relation, number)),
                    other => Err(format!("a number is compared with a number, not {other:?}")),
                }
            }
            Subject::Text(attribute) => self.text(attribute),
        }
    }

    /// What is asked of a text.
    fn text(&mut self, attribute: Attribute) -> Result<Expression, String> {
        let exact = |value: &str| StringMatcher::Exact { value: value.into(), ignore_case: false };
        if self.takes("==") {
            let value = self.literal()?;
            return Ok(Expression::Text(attribute, exact(&value)));
        }
        if self.takes("!=") {
            let value = self.literal()?;
            return Ok(Expression::Not(Box::new(Expression::Text(attribute, exact(&value)))));
        }
        self.expect(".")?;
        let Some(Token::Word(function)) = self.next() else { return Err("has no function after a dot".to_owned()) };
        self.expect("(")?;
        let value = self.literal()?;
        self.expect(")")?;
        let value_box: Box<str> = value.as_str().into();
        let matcher = match function.as_str() {
            "startsWith" => StringMatcher::Prefix { value: value_box, ignore_case: false },
            "endsWith" => StringMatcher::Suffix { value: value_box, ignore_case: false },
            "contains" => StringMatcher::Contains { value: value_box, ignore_case: false },
            // Anywhere in the text, unlike Envoy's own matchers.
            "matches" => StringMatcher::Regex(Box::new(
                full_match_regex(&format!("(?s:.*)(?:{value})(?s:.*)")).map_err(|error| error.to_string())?,
            )),
            other => {
                return Err(format!(
                    "the function {other} is not supported; startsWith, endsWith, contains and matches are"
                ));
            }
        };
        Ok(Expression::Text(attribute, matcher))
    }

    fn literal(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Text(text)) => Ok(text),
            other => Err(format!("a text is compared with a text in quotes, not {other:?}")),
        }
    }

    fn subject(&mut self) -> Result<Subject, String> {
        let Some(Token::Word(root)) = self.next() else { return Err("has no attribute where one is due".to_owned()) };
        self.expect(".")?;
        let Some(Token::Word(name)) = self.next() else { return Err(format!("{root} has no attribute after its dot")) };
        let header = |name| Ok(Subject::Text(Attribute::Header(HeaderRef::Name(name))));
        let named = |text: &str| matcher::header_name(text, "").map_err(|fault| fault.reason);
        match (root.as_str(), name.as_str()) {
            ("connection", "uri_san_peer_certificate") => Ok(Subject::Text(Attribute::PeerUriSan)),
            ("connection", "dns_san_peer_certificate") => Ok(Subject::Text(Attribute::PeerDnsSan)),
            ("connection", "subject_peer_certificate") => Ok(Subject::Text(Attribute::PeerSubject)),
            ("connection", "requested_server_name") => Ok(Subject::Text(Attribute::RequestedServerName)),
            ("request", "path") => Ok(Subject::Text(Attribute::Header(HeaderRef::Path))),
            ("request", "url_path") => Ok(Subject::Text(Attribute::UrlPath)),
            ("request", "host") => Ok(Subject::Text(Attribute::Header(HeaderRef::Authority))),
            ("request", "method") => Ok(Subject::Text(Attribute::Header(HeaderRef::Method))),
            ("request", "scheme") => Ok(Subject::Text(Attribute::Header(HeaderRef::Scheme))),
            ("request", "useragent") => header(named("user-agent")?),
            ("request", "referer") => header(named("referer")?),
            ("request", "id") => header(named("x-request-id")?),
            ("request", "headers") => {
                self.expect("[")?;
                let name = self.literal()?;
                self.expect("]")?;
                Ok(Subject::Text(Attribute::Header(matcher::header_ref(&name, "").map_err(|fault| fault.reason)?)))
            }
            ("response", "code") => Ok(Subject::Number(NumberAttribute::ResponseCode)),
            ("source", "port") => Ok(Subject::Number(NumberAttribute::SourcePort)),
            ("destination", "port") => Ok(Subject::Number(NumberAttribute::DestinationPort)),
            _ => Err(format!("the attribute {root}.{name} is not supported")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn what_kuma_writes_is_understood() {
        for (text, shape) in [
            (
                r#"connection.uri_san_peer_certificate.startsWith("spiffe://default/ns/clients/")"#,
                "Text(PeerUriSan, Prefix { value: \"spiffe://default/ns/clients/\", ignore_case: false })",
            ),
            (
                r#"connection.requested_server_name == "a.b""#,
                "Text(RequestedServerName, Exact { value: \"a.b\", ignore_case: false })",
            ),
            (
                r#"!(request.headers['x-a'] != "1") && response.code >= 500 || source.port == 7"#,
                "Or([And([Not(Not(Text(Header(Name(\"x-a\")), Exact { value: \"1\", ignore_case: false }))), \
                 Number(ResponseCode, AtLeast, 500)]), Number(SourcePort, Equal, 7)])",
            ),
        ] {
            assert_eq!(format!("{:?}", expression(text).unwrap()), shape, "{text}");
        }
    }

    #[test]
    fn matches_looks_anywhere() {
        let Expression::Text(_, matcher) = expression(r#"request.path.matches("b+c$")"#).unwrap() else {
            panic!("a text is compared")
        };
        for (path, holds) in [("/abbc", true), ("/abbcd", false), ("/a", false)] {
            assert_eq!(matcher.matches(path), holds, "{path}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (text, reason) in [
            ("", "has no attribute where one is due"),
            ("connection.id == 1", "the attribute connection.id is not supported"),
            ("request.path", "has no \".\" where one is due"),
            ("request.path == 7", "a text is compared with a text in quotes, not Some(Number(7))"),
            ("request.path.size() > 3", "a text is compared with a text in quotes, not Some(Sign(\")\"))"),
            ("request.path == \"a", "a text has no end"),
            ("request.path == \"a\" request", "does not go on with Word(\"request\")"),
            ("request.path == \"a\" + \"b\"", "'+' is not supported"),
            ("(request.path == \"a\"", "has no \")\" where one is due"),
        ] {
            assert_eq!(expression(text).unwrap_err(), reason, "{text}");
        }
        assert!(expression(&"!".repeat(10_000)).unwrap_err().contains("nested"));
        assert!(expression(&"(".repeat(10_000)).unwrap_err().contains("nested"));
    }
}
