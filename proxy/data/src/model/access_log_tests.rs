#![allow(clippy::unwrap_used)]

use super::{
    super::{
        format::{Operator, Part},
        matcher::{HeaderRef, HeaderTest},
    },
    *,
};

fn header(name: &'static str) -> HeaderRef {
    HeaderRef::Name(HeaderName::from_static(name))
}

fn format(operators: Vec<Operator>) -> Format {
    Format { parts: operators.into_iter().map(|operator| Part::Operator(operator, None)).collect(), omit_empty: false }
}

fn log(format: LogFormat, filter: Option<LogFilter>) -> AccessLog {
    AccessLog { filter, format, sink: LogSink::new("/x", 1).0 }
}

fn names(logs: Vec<AccessLog>) -> Vec<String> {
    RequestLogs::from(logs).response_headers().iter().map(ToString::to_string).collect()
}

fn request_names(logs: Vec<AccessLog>) -> Vec<String> {
    RequestLogs::from(logs).request_headers().iter().map(ToString::to_string).collect()
}

#[test]
fn what_logs_ask_for_of_a_request_is_known() {
    let text = |operators| LogFormat::Text(format(operators));
    let both = Operator::RequestHeader(header("x-one"), Some(header("user-agent")));
    // Its id is asked for by others, too.
    assert_eq!(request_names(Vec::new()), ["x-request-id"]);
    assert_eq!(request_names(vec![log(text(vec![Operator::StreamId]), None)]), ["x-request-id"]);
    assert_eq!(
        request_names(vec![log(text(vec![Operator::ResponseHeader(header("x-other"), None)]), None)]),
        ["x-request-id"]
    );
    let method = Operator::RequestHeader(HeaderRef::Method, Some(header("x-alternative")));
    assert_eq!(request_names(vec![log(text(vec![method]), None)]), ["x-alternative", "x-request-id"]);
    let json = LogFormat::Json(JsonFormat::Object(vec![("a".into(), JsonFormat::Value(format(vec![both.clone()])))]));
    assert_eq!(
        request_names(vec![log(json, None), log(text(vec![both]), None)]),
        ["user-agent", "x-one", "x-request-id"]
    );
    let test = |name| HeaderMatcher {
        name: header(name),
        test: HeaderTest::Present(true),
        invert: false,
        missing_as_empty: false,
    };
    let value = StringMatcher::Exact { value: "a".into(), ignore_case: false };
    let expression = Expression::Not(Box::new(Expression::And(vec![Expression::Or(vec![
        Expression::Text(Attribute::Header(header("x-expression")), value.clone()),
        Expression::Text(Attribute::UrlPath, value),
    ])])));
    let filter = LogFilter::Or(vec![
        LogFilter::And(vec![LogFilter::Header(test("x-matched"))]),
        LogFilter::Expression(expression),
    ]);
    assert_eq!(request_names(vec![log(text(Vec::new()), Some(filter))]), ["x-expression", "x-matched", "x-request-id"]);
}

#[test]
fn what_logs_ask_for_of_a_response_is_known() {
    let text = |operators| LogFormat::Text(format(operators));
    let grpc = LogFilter::GrpcStatus { codes: vec![0], exclude: false };
    let requested = Operator::RequestHeader(header("x-request-id"), None);
    let both = Operator::ResponseHeader(header("x-one"), Some(header("x-other")));
    assert_eq!(names(Vec::new()), Vec::<String>::new());
    assert_eq!(names(vec![log(text(vec![requested, Operator::Duration]), None)]), Vec::<String>::new());
    assert_eq!(names(vec![log(text(vec![both.clone()]), None)]), ["x-one", "x-other"]);
    // Each once, of all logs, wherever in a line.
    let json = LogFormat::Json(JsonFormat::Object(vec![
        ("a".into(), JsonFormat::Array(vec![JsonFormat::Value(format(vec![both.clone()]))])),
        ("b".into(), JsonFormat::Text(format(vec![Operator::GrpcStatus { number: true }]))),
        ("c".into(), JsonFormat::Literal("1".into())),
    ]));
    assert_eq!(names(vec![log(json, None), log(text(vec![both]), None)]), ["grpc-status", "x-one", "x-other"]);
    // Of the head itself nothing is kept: the code is known anyway.
    assert_eq!(
        names(vec![log(text(vec![Operator::ResponseHeader(HeaderRef::Status, None)]), None)]),
        Vec::<String>::new()
    );
    let filter = LogFilter::And(vec![LogFilter::Or(vec![LogFilter::Always(true), grpc])]);
    assert_eq!(names(vec![log(text(Vec::new()), Some(filter))]), ["grpc-status"]);
}
