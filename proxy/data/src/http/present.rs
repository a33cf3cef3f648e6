//! Which of the headers that a hop acts on are there: found in one pass over what came, so that the many that did not come cost no lookup each.

use http::HeaderMap;

/// A set of header names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u32);

impl Present {
    /// `host`, twice or more.
    pub const HOSTS: Present = Present(1);
    /// `connection`
    pub const CONNECTION: Present = Present(1 << 1);
    /// `upgrade`
    pub const UPGRADE: Present = Present(1 << 2);
    /// `keep-alive`, `proxy-connection` or `transfer-encoding`.
    pub const HOP: Present = Present(1 << 3);
    /// `expect`
    pub const EXPECT: Present = Present(1 << 4);
    /// `te`
    pub const TE: Present = Present(1 << 5);
    /// Any `x-envoy-…`.
    pub const ENVOY: Present = Present(1 << 6);
    /// `x-forwarded-for`
    pub const FORWARDED_FOR: Present = Present(1 << 7);
    /// `x-forwarded-proto`
    pub const FORWARDED_PROTO: Present = Present(1 << 8);
    /// `x-request-id`
    pub const REQUEST_ID: Present = Present(1 << 9);
    /// `x-forwarded-client-cert`
    pub const CLIENT_CERT: Present = Present(1 << 10);
    /// `cookie`, twice or more.
    pub const COOKIES: Present = Present(1 << 11);
    /// `content-type`
    pub const CONTENT_TYPE: Present = Present(1 << 12);
    const HOST: Present = Present(1 << 13);
    const COOKIE: Present = Present(1 << 14);

    /// Either set's names.
    pub const fn or(self, other: Present) -> Present {
        Present(self.0 | other.0)
    }

    /// What `headers` hold.
    pub fn of(headers: &HeaderMap) -> Present {
        let mut present = Present::default();
        for (name, _) in headers {
            let name = match name.as_str() {
                "host" if present.has(Present::HOST) => Present::HOSTS,
                "host" => Present::HOST,
                "cookie" if present.has(Present::COOKIE) => Present::COOKIES,
                "cookie" => Present::COOKIE,
                "connection" => Present::CONNECTION,
                "upgrade" => Present::UPGRADE,
                "keep-alive" | "proxy-connection" | "transfer-encoding" => Present::HOP,
                "expect" => Present::EXPECT,
                "te" => Present::TE,
                "content-type" => Present::CONTENT_TYPE,
                "x-forwarded-for" => Present::FORWARDED_FOR,
                "x-forwarded-proto" => Present::FORWARDED_PROTO,
                "x-request-id" => Present::REQUEST_ID,
                "x-forwarded-client-cert" => Present::CLIENT_CERT,
                name if name.starts_with("x-envoy-") => Present::ENVOY,
                _ => continue,
            };
            present.0 |= name.0;
        }
        present
    }

    /// Whether any of `names` is there.
    pub fn has(self, names: Present) -> bool {
        self.0 & names.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn every_name_is_found_alone_and_among_others() {
        for (names, expected, not) in [
            (&["host"][..], None, Some(Present::HOSTS)),
            (&["host", "accept", "host"], Some(Present::HOSTS), Some(Present::COOKIES)),
            (&["cookie"], None, Some(Present::COOKIES)),
            (&["cookie", "cookie"], Some(Present::COOKIES), Some(Present::HOSTS)),
            (&["connection"], Some(Present::CONNECTION), Some(Present::UPGRADE)),
            (&["upgrade"], Some(Present::UPGRADE), Some(Present::CONNECTION)),
            (&["keep-alive"], Some(Present::HOP), None),
            (&["proxy-connection"], Some(Present::HOP), None),
            (&["transfer-encoding"], Some(Present::HOP), None),
            (&["expect"], Some(Present::EXPECT), Some(Present::TE)),
            (&["content-type"], Some(Present::CONTENT_TYPE), Some(Present::TE)),
            (&["te"], Some(Present::TE), Some(Present::HOP)),
            (&["x-envoy-internal"], Some(Present::ENVOY), None),
            (&["x-envoy-anything"], Some(Present::ENVOY), None),
            (&["x-env"], None, Some(Present::ENVOY)),
            (&["x-forwarded-for"], Some(Present::FORWARDED_FOR), Some(Present::FORWARDED_PROTO)),
            (&["x-forwarded-proto"], Some(Present::FORWARDED_PROTO), Some(Present::FORWARDED_FOR)),
            (&["x-request-id"], Some(Present::REQUEST_ID), Some(Present::CLIENT_CERT)),
            (&["x-forwarded-client-cert"], Some(Present::CLIENT_CERT), Some(Present::REQUEST_ID)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static("*/*"));
            for name in names {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static("x"));
            }
            let present = Present::of(&headers);
            assert!(expected.is_none_or(|expected| present.has(expected)), "{names:?}");
            assert!(not.is_none_or(|not| !present.has(not)), "{names:?}");
        }
        assert_eq!(Present::of(&HeaderMap::new()), Present::default());
    }
}
