#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    model::listener::Terminal,
    stats::Registry,
    testing::{chain, listener},
};

/// Source: Envoy `ConnectionHandlerImpl::getBalancedHandlerByAddress`: the address itself, then the wildcard of its family and port.
#[test]
fn an_original_destination_finds_its_listener() {
    let registry = Registry::new(1);
    let addresses = [
        ("10.0.0.1:80", false),
        ("0.0.0.0:80", false),
        ("[fd00::1]:80", false),
        ("[::]:443", true),
        ("[::]:90", false),
    ];
    let listeners = addresses.iter().enumerate().map(|(id, (address, ipv4_compat))| {
        let mut listener = listener(&registry, id as u32, chain(0, Terminal::Close));
        listener.addresses = vec![BindAddress::Ip { address: address.parse().unwrap(), ipv4_compat: *ipv4_compat }];
        Some(Arc::new(listener))
    });
    enter_for_test(Arc::new(Snapshot { listeners: listeners.collect(), ..Snapshot::default() }));
    for (destination, expected) in [
        ("10.0.0.1:80", Some(0)),
        ("[::ffff:10.0.0.1]:80", Some(0)),
        ("10.0.0.2:80", Some(1)),
        ("[fd00::1]:80", Some(2)),
        ("[fd00::2]:80", None),
        ("10.0.0.1:443", Some(3)),
        ("[fd00::2]:443", Some(3)),
        ("10.0.0.1:90", None),
        ("10.0.0.1:81", None),
    ] {
        assert_eq!(
            snapshot().listener_for(destination.parse().unwrap()).map(|listener| listener.id.0),
            expected,
            "{destination}"
        );
    }
}

#[test]
fn the_date_is_a_date() {
    let date = date();
    assert!(httpdate::parse_http_date(date.to_str().unwrap()).is_ok());
}
