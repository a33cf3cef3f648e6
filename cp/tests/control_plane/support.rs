//! A control plane to call, and how to call it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use shika_cp::api::{Api, server};
use shika_cp::defaults;
use shika_cp::store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A REST API on a port of its own. Stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub store: Store,
    _stop: watch::Sender<bool>,
}

impl Server {
    /// With the defaults of a fresh control plane.
    pub async fn start(store: Store) -> Server {
        Server::start_with(store, true).await
    }

    pub async fn start_with(store: Store, localhost_is_admin: bool) -> Server {
        defaults::ensure(&store, false).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let mut api = Api::new(store.clone());
        api.localhost_is_admin = localhost_is_admin;
        let api = Arc::new(api);
        tokio::spawn(server::serve(listener, stopped, move |request| {
            let api = Arc::clone(&api);
            async move { api.answer(request).await }
        }));
        Server { address, store, _stop: stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn get(&self, path: &str) -> Reply {
        call(self.address, Method::GET, path, &[], "").await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        call(self.address, Method::PUT, path, &[], &body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        call(self.address, Method::DELETE, path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        call(self.address, Method::POST, path, &[], &body.to_string()).await
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The fields that were refused, with their reasons.
    pub fn refused(&self) -> Vec<String> {
        let error = self.json();
        let parameters = error["invalid_parameters"].as_array().cloned().unwrap_or_default();
        let causes = error["causes"].as_array().cloned().unwrap_or_default();
        assert_eq!(parameters.len(), causes.len(), "the old names say the same: {error}");
        let text = |parameter: &Value| {
            format!("{}: {}", parameter["field"].as_str().unwrap(), parameter["reason"].as_str().unwrap())
        };
        parameters.iter().map(text).collect()
    }
}

pub async fn call(address: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Reply { status, body: String::from_utf8(body.to_vec()).unwrap() }
}

/// Runs the same test on every kind of store.
pub async fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Server) -> F) {
    test(Server::start(Store::memory()).await).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::sqlite(&directory.path().join("shika.db")).await.unwrap();
    test(Server::start(store).await).await;
}

/// A Dataplane that passes every rule.
pub fn dataplane(mesh: &str, name: &str, service: &str) -> Value {
    serde_json::json!({
        "type": "Dataplane",
        "mesh": mesh,
        "name": name,
        "networking": {
            "address": "10.0.0.1",
            "inbound": [{"port": 80, "tags": {"kuma.io/service": service}}],
        },
    })
}
