#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fmt::Write as _, path::Path};

use super::*;

const HEAD: &str = "\
# Which of Envoy's fields are honoured

Made from the tables in `proxy/xds/src/support`, by which every resource and bootstrap is checked; a test compares the two. A set field that is
neither honoured nor harmless is refused, with its path and the reason: the resource is rejected (NACK), or the process does not start. A message that
is not listed is refused wherever it is met.

A harmless field is passed over: nothing that decides who may talk, where traffic goes or which bytes are sent depends on it. What was passed over
so far is listed by `GET /unsupported` of the admin endpoint.
";

/// The page, from the tables.
fn page() -> String {
    let mut messages: Vec<_> = table().collect();
    messages.sort_by_key(|message| message.name);
    let mut page = HEAD.to_owned();
    let (mut honoured, mut harmless, mut refused) = (0, 0, 0);
    for message in messages {
        writeln!(page, "\n## {}\n\n| field | | why |\n|---|---|---|", message.name).unwrap();
        for field in shika_proto::fields_of(message.name) {
            let find = |list: &[(&'static str, &'static str)]| {
                list.iter().find(|(name, _)| *name == field).map(|(_, why)| *why)
            };
            if message.honoured.split_whitespace().any(|name| name == field) {
                honoured += 1;
                writeln!(page, "| `{field}` | honoured | |").unwrap();
            } else if let Some(why) = find(message.harmless) {
                harmless += 1;
                writeln!(page, "| `{field}` | harmless | {why} |").unwrap();
            } else {
                refused += 1;
                writeln!(page, "| `{field}` | refused | {} |", find(message.refused).unwrap_or("is not supported"))
                    .unwrap();
            }
        }
    }
    writeln!(page, "\n{honoured} fields are honoured, {harmless} are harmless, {refused} are refused.").unwrap();
    page
}

#[test]
fn the_page_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/xds-support.md");
    let page = page();
    if std::env::var_os("SHIKA_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).position(|(new, old)| new != old);
    assert!(
        page == written,
        "docs/xds-support.md is not what the tables say (first at line {:?}): run this test with SHIKA_WRITE_DOCS=1",
        differs.map(|line| line + 1)
    );
}
