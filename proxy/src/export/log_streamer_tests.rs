#![allow(clippy::unwrap_used, clippy::panic)]

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    sync::oneshot,
    task::LocalSet,
};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn lines_as_kuma_has_them_written() {
    for (line, address, text) in [
        ("{\"address\":\"logs:1\",\"message\":\"plain \\\"x\\\"\\n\"}\n", "logs:1", "plain \"x\"\n"),
        ("{\"address\":\"logs:1\",\"message\":{\"a\":null,\"b\":1}}\n", "logs:1", "{\"a\":null,\"b\":1}\n"),
        ("{\"address\":\"logs:1\"}\n", "logs:1", "null\n"),
        ("10.0.0.1:5000;[2026] a;b\n", "10.0.0.1:5000", "[2026] a;b\n"),
    ] {
        assert_eq!(message(line.as_bytes()), Ok((address.to_owned(), Bytes::copy_from_slice(text.as_bytes()))));
    }
    for line in ["nothing\n", ";x\n", "{\"message\":\"x\"}\n", ""] {
        assert!(message(line.as_bytes()).is_err(), "{line}");
    }
}

/// A running streamer.
struct Running {
    lines: mpsc::Sender<Bytes>,
    orders: mpsc::UnboundedSender<WriterCommand>,
    lost: Arc<AtomicU64>,
}

impl Running {
    /// Has to be made in a [`LocalSet`].
    fn start() -> Running {
        let ((lines, received), (orders, obeyed)) = (mpsc::channel(1024), mpsc::unbounded_channel());
        let lost = Arc::new(AtomicU64::new(0));
        tokio::task::spawn_local(run(received, obeyed, lost.clone()));
        Running { lines, orders, lost }
    }

    async fn line(&self, line: String) {
        self.lines.send(line.into()).await.unwrap();
    }

    async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        assert!(self.orders.send(WriterCommand::Flush(done)).is_ok());
        timeout(LIMIT, wait).await.expect("in time").unwrap();
    }

    fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn accepted(listener: &TcpListener) -> BufReader<TcpStream> {
    BufReader::new(timeout(LIMIT, listener.accept()).await.expect("in time").unwrap().0)
}

async fn read(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    timeout(LIMIT, stream.read_line(&mut line)).await.expect("in time").unwrap();
    line
}

#[test]
fn each_line_reaches_its_backend_before_the_end() {
    local(async {
        let (first, second) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (one, two) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        let running = Running::start();
        for line in [
            format!("{one};hello\n"),
            "rubbish\n".into(),
            format!("{{\"address\":\"{two}\",\"message\":{{\"a\":1}}}}\n"),
            format!("{one};bye\n"),
        ] {
            running.line(line).await;
        }
        // All of it is out when this returns, and the connections have ended.
        running.flush().await;
        for (listener, expected) in [(first, "hello\nbye\n"), (second, "{\"a\":1}\n")] {
            let mut text = String::new();
            timeout(LIMIT, accepted(&listener).await.read_to_string(&mut text)).await.expect("in time").unwrap();
            assert_eq!(text, expected);
        }
        assert_eq!(running.lost(), 1);
    });
}

#[test]
fn a_backend_that_is_away_costs_its_lines_and_nobody_elses() {
    local(async {
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let running = Running::start();
        for number in 0..3 {
            running.line(format!("{away};{number}\n")).await;
            running.line(format!("{};{number}\n", there.local_addr().unwrap())).await;
        }
        let mut stream = accepted(&there).await;
        for number in 0..3 {
            assert_eq!(read(&mut stream).await, format!("{number}\n"));
        }
        while running.lost() < 3 {
            tokio::task::yield_now().await;
        }
        // Back again: it is tried anew after a pause. And once it was restarted, which its end of the connection tells.
        let back = TcpListener::bind(away).await.unwrap();
        for text in ["back\n", "again\n"] {
            let mut stream = connection(&back, || running.line(format!("{away};{text}"))).await;
            assert_eq!(read(&mut stream).await, text);
        }
    });
}

/// The connection that comes when lines are sent again and again.
async fn connection<F: Future<Output = ()>>(listener: &TcpListener, line: impl Fn() -> F) -> BufReader<TcpStream> {
    let retried = async {
        loop {
            line().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        stream = accepted(listener) => stream,
        () = retried => unreachable!(),
    }
}

#[test]
fn addresses_are_bounded() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let running = Running::start();
        for host in 1..=MAX_ADDRESSES + 2 {
            running.line(format!("127.0.0.{host}:{port};x\n")).await;
        }
        running.flush().await;
        // What is one too many, and what nobody listens for: all but the first.
        assert_eq!(running.lost(), MAX_ADDRESSES as u64 + 1);
        assert_eq!(read(&mut accepted(&listener).await).await, "x\n");
    });
}
