#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// `HeaderValueOption`
fn put(to: &mut Writer, field: u32, name: &str, value: &str, append: Option<bool>, action: u64) {
    to.message(field, |option| {
        option.entry(1, name, value);
        if let Some(append) = append {
            option.message(2, |flag| flag.number(1, u64::from(append)));
        }
        option.number(3, action);
    });
}

fn answer(code: u64, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut message = Writer::default();
    message.message(1, |status| status.number(1, code));
    write(&mut message);
    message.finish()
}

fn text(list: &[(HeaderName, HeaderValue, AppendAction)]) -> Vec<String> {
    list.iter().map(|(name, value, action)| format!("{name}={} {action:?}", value.to_str().unwrap())).collect()
}

#[test]
fn an_allowing_answer_changes_the_request() {
    let bytes = answer(0, |message| {
        message.message(3, |ok| {
            put(ok, 2, "x-plain", "1", None, 0);
            put(ok, 2, "x-set", "2", Some(false), 0);
            put(ok, 2, "x-append", "3", Some(true), 0);
            put(ok, 2, "x-absent", "4", None, 1);
            put(ok, 2, "not a name", "5", None, 0);
            ok.bytes(5, "x-gone");
            put(ok, 6, "x-response", "6", None, 0);
            put(ok, 6, "x-over", "7", None, 3);
            ok.entry(7, "q", "8");
            ok.bytes(8, "r");
        });
    });
    let Verdict::Allowed(changes) = read(&bytes).unwrap() else { panic!("it is allowed") };
    assert_eq!(
        text(&changes.put),
        ["x-plain=1 OverwriteIfExistsOrAdd", "x-set=2 OverwriteIfExistsOrAdd", "x-absent=4 OverwriteIfExistsOrAdd"]
    );
    assert_eq!(changes.append_to_present.len(), 1);
    assert_eq!(changes.remove, [HeaderName::from_static("x-gone")]);
    assert_eq!(text(&changes.response), ["x-response=6 AppendIfExistsOrAdd", "x-over=7 OverwriteIfExists"]);
    assert_eq!(changes.set_parameters, [("q".to_owned(), "8".to_owned())]);
    assert_eq!(changes.remove_parameters, ["r"]);
}

#[test]
fn a_refusing_answer_is_the_response() {
    let bytes = answer(7, |message| {
        message.message(2, |denied| {
            denied.message(1, |status| status.number(1, 401));
            put(denied, 2, "set-cookie", "a", None, 0);
            put(denied, 2, "set-cookie", "b", Some(true), 0);
            put(denied, 2, "content-length", "5", None, 0);
            denied.bytes(3, "no");
        });
    });
    let Verdict::Denied(denial) = read(&bytes).unwrap() else { panic!("it is denied") };
    assert_eq!((denial.status.unwrap().as_u16(), denial.body.as_str(), denial.headers.len()), (401, "no", 1));
    let Verdict::Denied(bare) = read(&answer(16, |_| {})).unwrap() else { panic!("it is denied") };
    assert_eq!(*bare, Denial::default(), "with Envoy's status then");
}

#[test]
fn an_answer_that_is_none_is_an_error() {
    assert!(matches!(read(b"").unwrap(), Verdict::Allowed(_)), "status 0 is left out on the wire");
    for bytes in [&b"\x0a\xff"[..], b"\x12\x01", b"\x1a\x02\x12\xff", b"\x08\x01"] {
        assert_eq!(read(bytes), Err(Malformed), "{bytes:?}");
    }
}
