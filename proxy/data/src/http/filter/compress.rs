//! Whether a response is compressed: the client's `accept-encoding`, the response's headers, the filter's settings.
//!
//! Source: Envoy "Compressor"; RFC 9110 section 12.5.3.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};

use super::{
    super::{exchange::Exchange, head::Head},
    effects, listed,
    shape::Gzip,
};
use crate::model::http_filter::{Compressor, CompressorOverride, FilterSetting};

/// The compressors that a request came by, and what its client takes.
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    compressors: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    compressor: Arc<Compressor>,
    enabled: bool,
    /// As it stood when the request came by; `None`: there was none, or the request did not come by.
    accept: Option<Box<str>>,
}

/// Notes a compressor for the response. `head` is `None` if the request was stopped before it.
pub(super) fn note(
    compressor: &Arc<Compressor>,
    setting: Option<&FilterSetting>,
    exchange: &mut Exchange,
    head: Option<&mut Head>,
) {
    let over = match setting {
        Some(FilterSetting::Compressor(over)) => *over,
        _ => CompressorOverride { enabled: None, remove_accept_encoding: None },
    };
    let enabled = over.enabled.unwrap_or(compressor.enabled);
    let accept = head.and_then(|head| {
        compressor.stats.request_not_compressed().inc();
        let accept = head
            .headers
            .contains_key(header::ACCEPT_ENCODING)
            .then(|| listed(&head.headers, &header::ACCEPT_ENCODING).as_ref().into());
        if enabled && over.remove_accept_encoding.unwrap_or(compressor.remove_accept_encoding) {
            head.headers.remove(header::ACCEPT_ENCODING);
        }
        accept
    });
    let candidate = Candidate { compressor: compressor.clone(), enabled, accept };
    effects(exchange).negotiation.get_or_insert_default().compressors.push(candidate);
}

/// What a client's `accept-encoding` means for gzip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Gzip,
    /// `*`
    Wildcard,
    Identity,
    NotValid,
}

/// Envoy's choice among gzip, `*` and `identity`: the highest weight, then the first; `first`: gzip goes before others of its weight.
fn choose(accept: &str, first: bool) -> Choice {
    let mut allowed = true;
    let mut pairs = Vec::new();
    for token in accept.split(',').filter(|token| !token.is_empty()) {
        let (name, parameters) = match token.split_once(';') {
            Some((name, parameters)) => (name.trim(), Some(parameters)),
            None => (token.trim(), None),
        };
        let mut weight = 1.0;
        if let Some((key, value)) = parameters.and_then(|parameters| parameters.split_once('='))
            && key.trim().eq_ignore_ascii_case("q")
        {
            let Ok(parsed) = value.trim().parse::<f32>() else { continue };
            weight = parsed;
        }
        if weight == 0.0 && name == "gzip" {
            allowed = false;
        }
        pairs.push((name, weight));
    }
    if pairs.is_empty() || !allowed {
        return Choice::NotValid;
    }
    let mut best = ("identity", 0.0);
    for (name, weight) in pairs {
        let known = matches!(name, "gzip" | "identity" | "*");
        if known && (weight > best.1 || (weight == best.1 && first && name == "gzip")) {
            best = (name, weight);
        }
    }
    match best {
        (_, 0.0) => Choice::NotValid,
        ("identity", _) => Choice::Identity,
        ("*", _) => Choice::Wildcard,
        _ => Choice::Gzip,
    }
}

impl Negotiation {
    /// Settles whether a response is compressed, and changes its headers accordingly. `ends`: it has no body.
    pub(super) fn settle(self, status: u16, headers: &mut HeaderMap, ends: bool) -> Option<Gzip> {
        let mut gzip = None;
        // The filter next to the upstream sees the response first.
        for Candidate { compressor, enabled, accept } in self.compressors.iter().rev() {
            let stats = &compressor.stats;
            let considered = *enabled && is_large_enough(compressor, headers);
            let compressible = considered && is_compressible(compressor, status, headers);
            let wanted = considered && !ends && accepted(compressor, accept.as_deref(), headers);
            if wanted && compressible && !ends {
                change_etag(compressor, headers);
                headers.remove(header::CONTENT_LENGTH);
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                stats.compressed().inc();
                gzip = Some(Gzip::new(compressor.level, stats.clone()));
            } else {
                stats.not_compressed().inc();
            }
            if compressible {
                vary(headers);
            }
        }
        gzip
    }
}

fn is_large_enough(compressor: &Compressor, headers: &HeaderMap) -> bool {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return true };
    let length = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
    let enough = length.is_some_and(|length| length >= compressor.min_content_length);
    if !enough {
        compressor.stats.content_length_too_small().inc();
    }
    enough
}

fn accepted(compressor: &Compressor, accept: Option<&str>, headers: &HeaderMap) -> bool {
    let stats = &compressor.stats;
    let Some(accept) = accept else {
        stats.no_accept_header().inc();
        return false;
    };
    // A type that is not for this compressor leaves nothing to choose from.
    let choice = if has_type(compressor, headers) { choose(accept, compressor.choose_first) } else { Choice::NotValid };
    match choice {
        Choice::Gzip => stats.header_compressor_used().inc(),
        Choice::Wildcard => stats.header_wildcard().inc(),
        Choice::Identity => {
            stats.header_identity().inc();
            return false;
        }
        Choice::NotValid => {
            stats.header_not_valid().inc();
            return false;
        }
    }
    true
}

fn is_compressible(compressor: &Compressor, status: u16, headers: &HeaderMap) -> bool {
    if status == 101 || compressor.uncompressible.contains(&status) {
        return false;
    }
    if !has_type(compressor, headers) {
        return false;
    }
    let forbidden = listed(headers, &header::CACHE_CONTROL)
        .split(',')
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"));
    if forbidden {
        return false;
    }
    if compressor.disable_on_etag && headers.contains_key(header::ETAG) {
        compressor.stats.not_compressed_etag().inc();
        return false;
    }
    !headers.contains_key(header::CONTENT_ENCODING)
}

/// Whether a response is of one of the compressor's types, or of none.
fn has_type(compressor: &Compressor, headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let kind = kind.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    compressor.content_types.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind))
}

/// A strong tag promises the same bytes.
fn change_etag(compressor: &Compressor, headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG) else { return };
    let bytes = tag.as_bytes();
    if bytes.len() <= 2 || bytes.starts_with(b"W/") || bytes.starts_with(b"w/") {
        return;
    }
    let weak = compressor.weaken_etag.then(|| HeaderValue::from_bytes(&[b"W/", bytes].concat()).ok()).flatten();
    match weak {
        Some(weak) => {
            headers.insert(header::ETAG, weak);
        }
        None => {
            headers.remove(header::ETAG);
        }
    }
}

fn vary(headers: &mut HeaderMap) {
    let old = listed(headers, &header::VARY);
    if old.split(',').any(|name| name.trim() == "Accept-Encoding") {
        return;
    }
    let new =
        if headers.contains_key(header::VARY) { format!("{old}, Accept-Encoding") } else { "Accept-Encoding".into() };
    if let Ok(value) = HeaderValue::from_str(&new) {
        headers.insert(header::VARY, value);
    }
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
