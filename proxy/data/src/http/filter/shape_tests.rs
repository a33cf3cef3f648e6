#![allow(clippy::unwrap_used)]

use std::{future::poll_fn, io::Read};

use super::*;
use crate::{
    stats::{Registry, Value},
    testing::scope,
};

#[test]
fn what_goes_into_gzip_comes_out_at_once() {
    let stats = CompressorStats::new(&Registry::new(1), scope("compressor."));
    let mut gzip = Gzip::new(6, stats.clone());
    let mut all = gzip.push(b"first event").to_vec();
    let mut seen = [0; 11];
    flate2::read::GzDecoder::new(all.as_slice()).read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"first event", "before the body ends");
    all.extend(gzip.push(b", second"));
    all.extend(gzip.finish());
    let mut text = String::new();
    flate2::read::GzDecoder::new(all.as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "first event, second");
    let counted = |index: usize| stats.group().read(index).value;
    assert_eq!(counted(2), Value::Number(text.len() as u64), "{:?}", stats.group().defs[2]);
    assert_eq!(counted(3), Value::Number(all.len() as u64), "{:?}", stats.group().defs[3]);
}

/// 1 KiB/s: 51 bytes every 50 ms, the first at once.
#[tokio::test(start_paused = true)]
async fn a_slowed_body_keeps_its_pace() {
    let mut throttle = Throttle::new(1);
    let start = Instant::now();
    let mut left = 200;
    let mut pieces = Vec::new();
    while left > 0 {
        let taken = poll_fn(|cx| throttle.poll_take(left, cx)).await;
        left -= taken;
        pieces.push((taken, start.elapsed().as_millis() as u64 / 50));
    }
    assert_eq!(pieces, [(51, 0), (51, 1), (51, 2), (47, 3)]);
    // A pause saves up at most a second.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(poll_fn(|cx| throttle.poll_take(10_000, cx)).await, 20 * 51);
}
