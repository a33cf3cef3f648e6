#![allow(clippy::unwrap_used)]

use http::{HeaderName, HeaderValue};

use super::*;
use crate::{
    stats::{CompressorStats, Registry, Value},
    testing::scope,
};

#[test]
fn what_accept_encoding_means() {
    use Choice::*;
    for (accept, first, expected) in [
        ("gzip", false, Gzip),
        ("deflate, gzip;q=1.0, *;q=0.5", false, Gzip),
        ("gzip;q=0.5, identity;q=0.8", false, Identity),
        ("identity", false, Identity),
        ("*", false, Wildcard),
        ("*;q=0.1, br", false, Wildcard),
        ("br", false, NotValid),
        ("", false, NotValid),
        ("gzip;q=0", false, NotValid),
        ("gzip;q=0, *", false, NotValid),
        ("gzip;q=x", false, NotValid),
        ("GZIP", false, NotValid),
        ("identity, gzip", false, Identity),
        ("identity, gzip", true, Gzip),
        ("gzip ; Q = 0.3", false, Gzip),
    ] {
        assert_eq!(choose(accept, first), expected, "{accept:?}");
    }
}

fn compressor(change: impl FnOnce(&mut Compressor)) -> Arc<Compressor> {
    let mut compressor = Compressor {
        stats: CompressorStats::new(&Registry::new(1), scope("compressor.")),
        enabled: true,
        min_content_length: 30,
        content_types: vec!["text/plain".into(), "application/json".into()],
        disable_on_etag: false,
        weaken_etag: false,
        remove_accept_encoding: false,
        uncompressible: vec![206],
        level: 6,
        choose_first: false,
    };
    change(&mut compressor);
    Arc::new(compressor)
}

fn headers(text: &str) -> HeaderMap {
    text.split("; ")
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

/// What becomes of a response: whether it is compressed, and its `vary`, `etag` and `content-length`.
fn settle(compressor: &Arc<Compressor>, accept: Option<&str>, status: u16, response: &str, ends: bool) -> String {
    let candidate =
        Candidate { compressor: compressor.clone(), enabled: compressor.enabled, accept: accept.map(Into::into) };
    let mut headers = headers(response);
    let gzip = Negotiation { compressors: vec![candidate] }.settle(status, &mut headers, ends);
    let shown = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    format!(
        "{} {} {} {} {}",
        if gzip.is_some() { "gzip" } else { "plain" },
        shown("content-encoding"),
        shown("vary"),
        shown("etag"),
        shown("content-length")
    )
}

fn counted(compressor: &Compressor, name: &str) -> u64 {
    let group = compressor.stats.group();
    let index = group.defs.iter().position(|def| def.name == name).unwrap();
    match group.read(index).value {
        Value::Number(number) => number,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn which_responses_are_compressed() {
    let plain = compressor(|_| {});
    for (accept, status, response, ends, expected) in [
        (Some("gzip"), 200, "content-length: 30; content-type: text/plain", false, "gzip gzip Accept-Encoding - -"),
        (Some("gzip"), 200, "content-type: TEXT/plain;charset=utf-8", false, "gzip gzip Accept-Encoding - -"),
        (Some("gzip"), 200, "vary: Origin", false, "gzip gzip Origin, Accept-Encoding - -"),
        (Some("gzip"), 200, "vary: Accept-Encoding", false, "gzip gzip Accept-Encoding - -"),
        (Some("gzip"), 200, "etag: \"a\"", false, "gzip gzip Accept-Encoding - -"),
        (Some("gzip"), 200, "etag: W/\"a\"", false, "gzip gzip Accept-Encoding W/\"a\" -"),
        (Some("gzip"), 200, "content-length: 29", false, "plain - - - 29"),
        (Some("gzip"), 200, "content-length: x", false, "plain - - - x"),
        (Some("gzip"), 200, "content-type: image/png", false, "plain - - - -"),
        (Some("gzip"), 200, "content-encoding: br", false, "plain br - - -"),
        (Some("gzip"), 200, "cache-control: public, No-Transform", false, "plain - - - -"),
        (Some("gzip"), 206, "content-length: 300", false, "plain - - - 300"),
        (Some("gzip"), 200, "content-length: 300", true, "plain - Accept-Encoding - 300"),
        (Some("br"), 200, "content-length: 300; etag: \"a\"", false, "plain - Accept-Encoding \"a\" 300"),
        (None, 200, "content-length: 300", false, "plain - Accept-Encoding - 300"),
    ] {
        assert_eq!(settle(&plain, accept, status, response, ends), expected, "{accept:?} {status} {response}");
    }
    let careful = compressor(|compressor| compressor.disable_on_etag = true);
    assert_eq!(settle(&careful, Some("gzip"), 200, "etag: \"a\"", false), "plain - - \"a\" -");
    let weak = compressor(|compressor| compressor.weaken_etag = true);
    assert_eq!(settle(&weak, Some("gzip"), 200, "etag: \"a\"", false), "gzip gzip Accept-Encoding W/\"a\" -");
    let off = compressor(|compressor| compressor.enabled = false);
    assert_eq!(settle(&off, Some("gzip"), 200, "content-length: 300", false), "plain - - - 300");
    assert_eq!(counted(&plain, "response.compressed"), 6);
    assert_eq!(counted(&plain, "no_accept_header"), 1);
    assert_eq!(counted(&plain, "response.content_length_too_small"), 2);
    assert_eq!(counted(&careful, "not_compressed_etag"), 1);
}
