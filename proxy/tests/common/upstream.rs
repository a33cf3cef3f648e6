//! An upstream whose answers the test holds back or lets go.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Answers every request with its name. Requests for `/held` are answered once [`Upstream::release`] was called.
pub struct Upstream {
    pub address: SocketAddr,
    /// Requests that came.
    pub requests: Arc<AtomicU64>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Upstream {
    /// One that listens.
    pub fn start(name: &'static str) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream =
            Upstream { address: listener.local_addr().unwrap(), requests: Arc::default(), gate: Arc::default() };
        let (requests, gate) = (upstream.requests.clone(), upstream.gate.clone());
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (requests, gate) = (requests.clone(), gate.clone());
                thread::spawn(move || {
                    let mut socket = socket.unwrap();
                    let mut reader = BufReader::new(socket.try_clone().unwrap());
                    loop {
                        let mut head = String::new();
                        while !head.ends_with("\r\n\r\n") {
                            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        requests.fetch_add(1, Ordering::Relaxed);
                        if head.starts_with("GET /held") {
                            let (open, opened) = &*gate;
                            drop(opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
                        }
                        // A proxy that has gone away is nobody's concern here.
                        let _ = write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    }
                });
            }
        });
        upstream
    }

    /// Lets the answers to `/held` go.
    pub fn release(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}
