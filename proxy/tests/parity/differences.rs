//! The page for readers who run Envoy: what differs, and why.

use std::fmt::Write as _;

use crate::case::{Case, Difference};

const HEAD: &str = "\
# Where Shika differs from Envoy

Made from the cases of `proxy/tests/parity`, which run on the real Envoy and on shika-proxy and compare what clients, upstreams, logs and statistics
see; a test compares the two. Whatever is not listed here and was compared is the same. `*` stands for any text.
";

const PEERS: &str = "
## Through a pair of sidecars

`proxy/tests/peers` runs gRPC, WebSocket and extended CONNECT between clients and servers by others through two sidecars of each kind; what a step comes
to is compared. Whatever is not listed here is the same.

";

/// The page: of the cases, what goes for all of them, and of the steps of `proxy/tests/peers`.
pub fn page(cases: &[(String, Case)], global: &[Difference], peers: &[Difference]) -> String {
    let mut page = HEAD.to_owned();
    let _ = writeln!(page, "\n{} cases are compared.", cases.len());
    if !global.is_empty() {
        let _ = writeln!(page, "\n## Everywhere\n");
        list(&mut page, global);
    }
    for (name, case) in cases {
        if case.differences.is_empty() && case.refused.is_none() {
            continue;
        }
        let _ = writeln!(page, "\n## {name}\n\n{}\n", case.describe.trim());
        if let Some(refused) = &case.refused {
            let _ = writeln!(page, "- Refused by name: {}", refused.reason.trim());
        }
        list(&mut page, &case.differences);
    }
    if !peers.is_empty() {
        page.push_str(PEERS);
        list(&mut page, peers);
    }
    page
}

fn list(page: &mut String, differences: &[Difference]) {
    for difference in differences {
        let value = |value: &Option<String>| value.as_ref().map(|value| format!("`{}`", value.replace('\n', " ")));
        let seen = match (value(&difference.envoy), value(&difference.shika)) {
            (Some(envoy), Some(shika)) => format!(" (Envoy {envoy}, Shika {shika})"),
            (Some(envoy), None) => format!(" (Envoy {envoy})"),
            (None, Some(shika)) => format!(" (Shika {shika})"),
            (None, None) => String::new(),
        };
        let _ = writeln!(page, "- `{}`{seen}: {}", difference.at, difference.reason.trim());
    }
}
