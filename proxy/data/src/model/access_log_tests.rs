#![allow(clippy::unwrap_used)]

use super::{
    super::{
        format::{Operator, Part},
        matcher::HeaderRef,
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
