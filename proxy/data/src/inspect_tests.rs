#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::*;
use crate::testing;

/// What a connection is that begins with all of these bytes at once.
fn client_hello(bytes: &[u8]) -> Hello {
    super::client_hello(bytes, &mut Gathering::default())
}

/// A ClientHello as the library writes it.
pub(crate) fn hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of `size` bytes.
fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|chunk| [&[22, 3, 1, (chunk.len() >> 8) as u8, chunk.len() as u8], chunk].concat())
        .collect()
}

fn found(name: &str, alpn: &[&[u8]]) -> Hello {
    Hello::Found { server_name: name.into(), alpn: alpn.iter().map(|p| p.to_vec()).collect() }
}

#[test]
fn client_hellos() {
    for (name, alpn, expected) in [
        ("Backend.Example", &[&b"h2"[..], b"http/1.1"][..], "backend.example"),
        ("a.b", &[], "a.b"),
        ("127.0.0.1", &[b"kuma"], ""),
    ] {
        let bytes = hello(name, alpn);
        assert_eq!(client_hello(&bytes), found(expected, alpn));
        let mut followed = bytes.clone();
        followed.extend_from_slice(&[23, 3, 3, 0, 1, 0]);
        assert_eq!(client_hello(&followed), found(expected, alpn), "what follows does not matter");
        for size in [1, 2, 3, 4, 5, 50, 400] {
            assert_eq!(client_hello(&fragmented(&bytes, size)), found(expected, alpn), "records of {size}");
        }
    }
}

#[test]
fn a_hello_cut_at_any_byte_waits_for_the_rest() {
    let bytes = hello("backend.example", &[b"h2"]);
    for bytes in [bytes.clone(), fragmented(&bytes, 7)] {
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Hello::More, "cut at {end} of {}", bytes.len());
        }
    }
}

#[test]
fn a_wrong_byte_is_found_when_it_is_there() {
    for bytes in [
        &b"G"[..],
        b"\x16\x02",
        b"\x15\x03\x01",
        b"\x16\x03\x01\x00\x00",     // empty record
        b"\x16\x03\x01\xff\xff",     // larger than any record
        b"\x16\x03\x01\x00\x10\x02", // a ServerHello
    ] {
        assert_eq!(client_hello(bytes), Hello::NotTls, "{bytes:?}");
        assert!(!matches!(client_hello(&bytes[..bytes.len() - 1]), Hello::Found { .. }));
    }
}

#[test]
fn no_flipped_byte_is_taken_for_more_than_it_is() {
    let bytes = hello("backend.example", &[b"h2"]);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            // Any outcome is fine but a panic, and a name that is not text.
            if let Hello::Found { server_name, .. } = client_hello(&damaged) {
                assert!(server_name.len() <= bytes.len());
            }
        }
    }
}

#[test]
fn a_hello_too_large_is_not_taken_for_plain_text() {
    // The record's header and the message's, so that it is complete but for its bytes.
    let claims = |length: u16| {
        let [high, low] = length.to_be_bytes();
        [&[22, 3, 1, 0x40, 0, 1, 0, high, low][..], &[0; 100]].concat()
    };
    assert_eq!(client_hello(&claims(16_380)), Hello::More);
    assert_eq!(client_hello(&claims(16_381)), Hello::TooLarge);
    assert_eq!(client_hello(&claims(65_535)), Hello::TooLarge);
    // Small enough, but in more bytes of records than are waited for.
    let tiny: Vec<u8> = [1, 0, 0x20, 0]
        .into_iter()
        .chain(std::iter::repeat(0))
        .take(2800)
        .flat_map(|byte| [22, 3, 1, 0, 1, byte])
        .collect();
    assert_eq!(client_hello(&tiny[..MAX_CLIENT_HELLO - 1]), Hello::More);
    assert_eq!(client_hello(&tiny[..MAX_CLIENT_HELLO]), Hello::TooLarge);
}

#[tokio::test]
async fn a_hello_too_large_ends_the_connection() {
    let (mut client, server) = testing::pair().await;
    client.write_all(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xff]).await.unwrap();
    let wanted = Look { tls: true, http: true };
    let result = inspect(&mut Socket::Tcp(server.into()), &mut BytesMut::new(), wanted).await;
    assert!(matches!(result, Err(InspectError::TooLarge)), "{result:?}");
}

#[test]
fn http_versions() {
    for (bytes, expected) in [
        (&b""[..], HttpVersion::More),
        (b"P", HttpVersion::More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", HttpVersion::More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HttpVersion::Is("h2c")),
        (b"GET", HttpVersion::More),
        (b"GET / HTTP/1.1\r", HttpVersion::More),
        (b"GET / HTTP/1.1\r\n", HttpVersion::Is("http/1.1")),
        (b"POST /x HTTP/1.0\nHost: a", HttpVersion::Is("http/1.0")),
        (b"GET / HTTP/3\r\n", HttpVersion::None),
        (b"PRI * HTTP/2.0\r\n\r\nXX", HttpVersion::None),
        (b"\x16\x03\x01", HttpVersion::None),
        (b"\x00", HttpVersion::None),
        (b" GET", HttpVersion::None),
        (b"hello\r\n", HttpVersion::None),
        (b"GET \x01", HttpVersion::None),
        (b"GET \x00/ HTTP/1.0\r\n", HttpVersion::None),
    ] {
        assert_eq!(http_version(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(http_version(&[b'A'; 33]), HttpVersion::None);
    let long = |more: &str| format!("GET /{}{more}", "x".repeat(MAX_REQUEST_LINE));
    assert_eq!(http_version(long("").as_bytes()), HttpVersion::None);
    assert_eq!(http_version(long(" HTTP/1.1\r\n").as_bytes()), HttpVersion::None);
}

#[tokio::test]
async fn what_was_inspected_is_read_again() {
    let (mut client, server) = testing::pair().await;
    let mut socket = Socket::Tcp(server.into());
    let bytes = hello("backend.example", &[b"h2"]);
    let (first, second) = bytes.split_at(100);
    client.write_all(first).await.unwrap();
    let mut head = BytesMut::new();
    let wanted = Look { tls: true, http: true };
    {
        let mut inspection = std::pin::pin!(inspect(&mut socket, &mut head, wanted));
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(inspection.as_mut().poll(cx).is_pending())).await);
        client.write_all(second).await.unwrap();
        client.write_all(b"rest").await.unwrap();
        let findings = inspection.await.unwrap();
        assert_eq!(&*findings.server_name, "backend.example");
        assert_eq!(findings.application_protocols, ["h2".into()]);
        assert_eq!(findings.transport, TransportProtocol::Tls);
    }
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    replay(head, socket).read_to_end(&mut all).await.unwrap();
    assert_eq!(all, [&bytes[..], b"rest"].concat());
}

#[tokio::test]
async fn closing_without_a_byte_is_an_end_and_closing_after_some_is_plain_text() {
    for (said, ended) in [(&b""[..], true), (b"\x16\x03", false)] {
        let (mut client, server) = testing::pair().await;
        client.write_all(said).await.unwrap();
        drop(client);
        let result =
            inspect(&mut Socket::Tcp(server.into()), &mut BytesMut::new(), Look { tls: true, http: false }).await;
        assert_eq!(result.is_err(), ended, "{said:?}");
    }
}

/// Found by fuzzing: what came after the length decided when it came together with it.
#[test]
fn a_hello_that_is_too_long_is_so_whatever_follows() {
    let large = [&[22, 3, 1, 0, 6, 1, 0xbb, 0xbb, 0xbb, 3, 3][..], b"no record"].concat();
    // No ClientHello, so its length counts for nothing.
    let other = [22, 3, 1, 0, 6, 2, 0xbb, 0xbb, 0xbb, 3, 3];
    for (bytes, expected) in [(&large[..], Hello::TooLarge), (&large[..9], Hello::TooLarge), (&other, Hello::NotTls)] {
        assert_eq!(super::client_hello(bytes, &mut Gathering::default()), expected);
    }
    let mut pieces = Gathering::default();
    let verdict =
        (1..=large.len()).map(|end| super::client_hello(&large[..end], &mut pieces)).find(|one| *one != Hello::More);
    assert_eq!(verdict, Some(Hello::TooLarge));
}
