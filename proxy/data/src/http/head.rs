//! A request's head as it is worked on, and what is done with it before any filter sees it: checks, path, trust, hop-by-hop headers.
//!
//! Source: Envoy `ConnectionManagerUtility` as documented under "HTTP header manipulation" and "HTTP header sanitizing".

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::OnceLock,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, request::Parts};

mod client_cert;
mod hop;

use super::{
    exchange::RequestHead,
    headers as names,
    local_reply::Refusal,
    path,
    present::Present,
    route::{is_grpc, path_only, without_port},
};
use crate::{
    connection::Connection,
    error::ResponseFlag,
    model::{
        header_view::KeptHeaders,
        http::{EscapedSlashes, HttpConnectionManager, StripPort, Underscores},
        rbac::RequestView,
    },
    stats::Origin,
};

/// A request's head, taken apart.
#[derive(Debug)]
pub struct Head {
    /// `:method`
    pub method: Method,
    /// `:path`: path and query.
    pub path: Path,
    /// `:authority`; empty if there is none.
    pub authority: HeaderValue,
    /// `:scheme`: from the request (HTTP/2), else from `x-forwarded-proto`.
    pub scheme: &'static str,
    /// All other headers.
    pub headers: HeaderMap,
    /// The protocol it came by.
    pub version: Version,
    /// What it wants to switch to, lower case.
    pub upgrade: Option<String>,
    /// Who asks, as far as `x-forwarded-for` is trusted.
    pub remote: Option<SocketAddr>,
    /// Of HTTP/1.0: the client asked for the connection to be kept.
    pub keep_alive: bool,
    /// There is neither `:authority` nor `host`; an empty one is one.
    no_authority: bool,
    /// What is in `headers`, as long as only `check` and `sanitize` touched them.
    present: Present,
}

/// A path and query: as it came, or as it was changed.
#[derive(Clone, Debug)]
pub enum Path {
    /// In the request's URI.
    Original(Uri),
    /// After normalisation or rewriting.
    Changed(String),
}

impl Path {
    /// Its text.
    pub fn as_str(&self) -> &str {
        match self {
            Path::Original(uri) => uri.path_and_query().map_or("", |path| path.as_str()),
            Path::Changed(path) => path,
        }
    }
}

impl Head {
    /// Takes a request apart. hyper has already parsed it; what it lets through and Envoy does not is refused by [`Head::check`].
    pub fn new<B>(request: Request<B>) -> (Self, http::Extensions, B) {
        let (parts, body) = request.into_parts();
        let Parts { mut method, uri, version, mut headers, mut extensions, .. } = parts;
        let mut upgrade = None;
        // As in Envoy: an extended CONNECT (RFC 8441 section 4) is to all that follows the upgrade that it stands for.
        if method == Method::CONNECT
            && let Some(protocol) = extensions.remove::<hyper::ext::Protocol>()
        {
            method = Method::GET;
            upgrade = Some(protocol.as_str().to_ascii_lowercase());
        }
        let authority = match uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).unwrap_or(HeaderValue::from_static("")),
            None => headers.get(header::HOST).cloned().unwrap_or(HeaderValue::from_static("")),
        };
        let no_authority = authority.is_empty() && !headers.contains_key(header::HOST);
        let present = Present::of(&headers);
        if version == Version::HTTP_2 {
            headers.remove(header::HOST);
            if present.has(Present::COOKIES) {
                names::join_cookies(&mut headers);
            }
        }
        let scheme = match uri.scheme_str() {
            Some("https") => "https",
            _ => "http",
        };
        let head = Head {
            method,
            path: Path::Original(uri),
            authority,
            scheme,
            headers,
            version,
            upgrade,
            remote: None,
            keep_alive: false,
            no_authority,
            present,
        };
        (head, extensions, body)
    }

    /// Whether it is a gRPC request, by what came.
    pub fn is_grpc(&self) -> bool {
        self.present.has(Present::CONTENT_TYPE) && is_grpc(&self.headers)
    }

    /// For matchers.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            path: self.path.as_str(),
            authority: self.authority(),
            scheme: self.scheme,
            headers: (&self.headers).into(),
        }
    }

    /// For what comes after the request itself is gone.
    pub fn copy(&self, headers: KeptHeaders) -> RequestHead {
        RequestHead {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            scheme: self.scheme,
            headers,
        }
    }

    /// `:authority` as text; empty if it is not ASCII.
    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap_or("")
    }

    /// What Envoy's codec and connection manager refuse before any filter.
    pub fn check(&mut self, manager: &HttpConnectionManager) -> Result<(), Refusal> {
        if self.version < Version::HTTP_11 {
            if !manager.http1.accept_http_10 {
                return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "", "low_version").closing());
            }
            if self.no_authority
                && let Some(host) = &manager.http1.default_host
            {
                self.authority = host.clone();
                self.no_authority = false;
            }
        }
        if self.no_authority || self.authority.to_str().is_err() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "", "missing_host_header").closing());
        }
        // Two hosts (RFC 9112 section 3.2): this hop might route by the one and the next serve the other.
        if self.version != Version::HTTP_2 && self.present.has(Present::HOSTS) {
            return Err(self.malformed());
        }
        if self.version == Version::HTTP_2 && names::has_bad_name(&self.headers) {
            return Err(Refusal { details: "http2.invalid.header.field".into(), ..self.malformed() });
        }
        if self.headers.len() > manager.max_header_count as usize {
            manager.stats.downstream_rq_too_large().inc();
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            let body = if self.version < Version::HTTP_2 { "Request Header Fields Too Large" } else { "" };
            return Err(Refusal::new(status, body, "request_headers_too_large").closing());
        }
        if self.method != Method::CONNECT && !self.path.as_str().starts_with('/') {
            manager.stats.downstream_rq_non_relative_path().inc();
            return Err(Refusal::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected"));
        }
        if manager.underscores != Underscores::Allow {
            let bad: Vec<HeaderName> =
                self.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
            match manager.underscores {
                Underscores::Reject if !bad.is_empty() => {
                    return Err(Refusal { details: "http1.unexpected_underscore".into(), ..self.malformed() });
                }
                _ => bad.iter().for_each(|name| {
                    self.headers.remove(name);
                }),
            }
        }
        self.take_connection()?;
        self.normalize(manager)
    }

    /// What Envoy's codec answers.
    fn malformed(&self) -> Refusal {
        let body = if self.version < Version::HTTP_2 { "Bad Request" } else { "" };
        Refusal::new(StatusCode::BAD_REQUEST, body, "http1.codec_error")
            .flag(ResponseFlag::DownstreamProtocolError)
            .closing()
    }

    fn normalize(&mut self, manager: &HttpConnectionManager) -> Result<(), Refusal> {
        if self.method == Method::CONNECT {
            return Ok(());
        }
        let stats = &manager.stats;
        if manager.escaped_slashes != EscapedSlashes::Keep
            && let Some(unescaped) = path::unescape_slashes(self.path.as_str())
        {
            match manager.escaped_slashes {
                EscapedSlashes::Keep => {}
                EscapedSlashes::Reject => {
                    stats.downstream_rq_failed_path_normalization().inc();
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"));
                }
                EscapedSlashes::UnescapeAndForward => self.path = Path::Changed(unescaped),
                EscapedSlashes::UnescapeAndRedirect => {
                    stats.downstream_rq_redirected_with_normalized_path().inc();
                    let target = path::normalize(&unescaped).unwrap_or(unescaped);
                    return Err(
                        Refusal::new(StatusCode::TEMPORARY_REDIRECT, "", "path_normalization_failed").to(target)
                    );
                }
            }
        }
        if manager.normalize_path {
            match path::normalize(self.path.as_str()) {
                Some(normal) if normal == self.path.as_str() => {}
                Some(normal) => self.path = Path::Changed(normal),
                None => {
                    stats.downstream_rq_failed_path_normalization().inc();
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"));
                }
            }
        }
        if manager.merge_slashes && path_only(self.path.as_str()).contains("//") {
            self.path = Path::Changed(path::merge_slashes(self.path.as_str()));
        }
        Ok(())
    }

    /// The connection manager's header work: hop-by-hop headers, who asks, whether from inside, request id, client certificate.
    pub fn sanitize(&mut self, manager: &HttpConnectionManager, connection: &Connection) -> Origin {
        self.strip_host(manager, connection);
        let present = self.present;
        if present.has(Present::HOP) {
            for name in [&names::KEEP_ALIVE, &names::PROXY_CONNECTION, &header::TRANSFER_ENCODING] {
                self.headers.remove(name);
            }
        }
        if present.has(Present::ENVOY) {
            self.headers.remove(&names::ENVOY_INTERNAL);
        }
        if present.has(Present::EXPECT) {
            self.take_expect();
        }
        if present.has(Present::TE) {
            self.take_te();
        }
        let scheme = if connection.tls.is_some() { "https" } else { "http" };
        let single = self.trust(manager, connection, scheme);
        let internal = single
            && self.remote.is_none_or(|remote| is_internal(manager, Some(remote.ip())))
            && self.remote_known(manager, connection);
        if internal {
            self.headers.insert(names::ENVOY_INTERNAL.clone(), HeaderValue::from_static("true"));
        } else if present.has(Present::ENVOY) {
            if manager.trust.use_remote_address {
                names::remove_envoy(&mut self.headers, &names::EDGE_ONLY);
            }
            names::remove_envoy(&mut self.headers, &names::INTERNAL_ONLY);
        }
        let edge = !internal && manager.trust.use_remote_address;
        if edge
            && let Some(remote) = self.remote
            && let Ok(address) = HeaderValue::from_str(&remote.ip().to_canonical().to_string())
        {
            self.headers.insert(names::ENVOY_EXTERNAL_ADDRESS.clone(), address);
        }
        let keep_id = present.has(Present::REQUEST_ID) && (!edge || manager.preserve_external_request_id);
        if manager.generate_request_id && !keep_id {
            self.headers.insert(names::REQUEST_ID.clone(), names::new_request_id());
        }
        self.client_certificate(manager.client_cert, connection.tls.as_deref());
        if let Some(via) = &manager.via {
            names::append(&mut self.headers, header::VIA, via.to_str().unwrap_or(""), ", ");
        }
        if self.version != Version::HTTP_2 {
            let forwarded = match present.has(Present::FORWARDED_PROTO) {
                true => self.headers.get(&names::FORWARDED_PROTO),
                false => None,
            };
            self.scheme = match forwarded.map(HeaderValue::as_bytes) {
                Some(b"https") => "https",
                Some(b"http") => "http",
                _ => scheme,
            };
        }
        if internal { Origin::Internal } else { Origin::External }
    }

    fn strip_host(&mut self, manager: &HttpConnectionManager, connection: &Connection) {
        if manager.strip_port == StripPort::No && !manager.strip_trailing_dot {
            return;
        }
        let authority = self.authority();
        let mut host = authority;
        let bare = without_port(authority);
        let strip = match manager.strip_port {
            StripPort::No => false,
            StripPort::Any => true,
            StripPort::Matching => {
                let port = authority[bare.len()..].strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
                port.is_some() && port == connection.local.map(|local| local.port())
            }
        };
        if strip {
            host = bare;
        }
        let mut host = host.to_owned();
        if manager.strip_trailing_dot {
            let bare = without_port(&host).len();
            if host[..bare].ends_with('.') {
                host.remove(bare - 1);
            }
        }
        if host != authority {
            self.authority = HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static(""));
        }
    }

    /// Finds out who asks. Returns whether `x-forwarded-for` leaves no doubt about it.
    fn trust(&mut self, manager: &HttpConnectionManager, connection: &Connection, scheme: &'static str) -> bool {
        let trust = &manager.trust;
        let forwarded = match self.present.has(Present::FORWARDED_FOR) {
            true => names::joined(&self.headers, &names::FORWARDED_FOR),
            false => String::new(),
        };
        self.remote = connection.remote;
        if trust.use_remote_address {
            if trust.xff_trusted_hops > 0
                && let Some(ip) = nth_from_right(&forwarded, trust.xff_trusted_hops as usize - 1)
            {
                self.remote = Some(SocketAddr::new(ip, 0));
            }
            if !trust.skip_xff_append
                && let Some(remote) = connection.remote
            {
                let client = match remote.ip().to_canonical() {
                    // The next hop could not tell it from its own loopback.
                    IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => own_address(),
                    ip => ip,
                };
                names::append(&mut self.headers, names::FORWARDED_FOR.clone(), &client.to_string(), ",");
            }
            if trust.xff_trusted_hops == 0 || !self.present.has(Present::FORWARDED_PROTO) {
                self.headers.insert(names::FORWARDED_PROTO.clone(), HeaderValue::from_static(scheme));
            }
            return forwarded.is_empty();
        }
        let single = !forwarded.is_empty() && !forwarded.contains(',');
        if let Some(ip) = nth_from_right(&forwarded, trust.xff_trusted_hops as usize) {
            self.remote = Some(SocketAddr::new(ip, 0));
        }
        if !self.present.has(Present::FORWARDED_PROTO) {
            let value = if self.version == Version::HTTP_2 { self.scheme } else { scheme };
            self.headers.insert(names::FORWARDED_PROTO.clone(), HeaderValue::from_static(value));
        }
        single
    }

    fn remote_known(&self, manager: &HttpConnectionManager, connection: &Connection) -> bool {
        self.remote.is_some() || (connection.remote.is_none() && manager.trust.internal_unix)
    }
}

/// This host's address as others see it: the one that it would send from. Source: Envoy `LocalInfo::address`.
pub fn own_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let find = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // Nothing is sent: the kernel chooses a route and with it a source address.
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        };
        find().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
    })
}

fn is_internal(manager: &HttpConnectionManager, ip: Option<IpAddr>) -> bool {
    ip.is_some_and(|ip| manager.trust.internal.iter().any(|net| net.contains(&ip.to_canonical())))
}

fn nth_from_right(list: &str, n: usize) -> Option<IpAddr> {
    if list.is_empty() {
        return None;
    }
    let entry = list.rsplit(',').nth(n)?.trim();
    entry.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))
}
