//! A wire that can be cut: a TCP proxy in front of Postgres, so that a test can take it away from one deployment while
//! all others keep it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The proxy; it ends with the process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    wire: Arc<Mutex<Wire>>,
}

#[derive(Default)]
struct Wire {
    state: State,
    open: Vec<TcpStream>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Whole,
    /// Connections break, new ones are closed at once.
    Cut,
    /// Connections stay, nothing goes through.
    Silent,
    /// Each part of a conversation takes so much longer.
    Slow(Duration),
}

impl Proxy {
    /// In front of `host:port`.
    pub(crate) fn before(address: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let wire = Arc::new(Mutex::new(Wire::default()));
        let (shared, address) = (wire.clone(), address.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accept(client, &address, &shared);
            }
        });
        Proxy { port, wire }
    }

    /// In front of the server of a database URL; answers the URL through the proxy too.
    pub(crate) fn before_database(url: &str) -> (Proxy, String) {
        let (front, rest) = url.rsplit_once('@').expect("a URL with a password");
        let (address, database) = rest.split_once('/').expect("a URL with a database");
        let proxy = Proxy::before(address);
        let through = format!("{front}@127.0.0.1:{}/{database}", proxy.port);
        (proxy, through)
    }

    pub(crate) fn cut(&self) {
        let mut wire = self.wire.lock().expect("no panic");
        wire.state = State::Cut;
        for stream in wire.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn silence(&self) {
        self.wire.lock().expect("no panic").state = State::Silent;
    }

    /// Delays whatever goes through, a part at a time.
    pub(crate) fn slow(&self, delay: Duration) {
        self.wire.lock().expect("no panic").state = State::Slow(delay);
    }

    /// Lets new connections through; those that were silenced go on too.
    pub(crate) fn mend(&self) {
        self.wire.lock().expect("no panic").state = State::Whole;
    }
}

fn accept(client: TcpStream, address: &str, wire: &Arc<Mutex<Wire>>) {
    if wire.lock().expect("no panic").state == State::Cut {
        let _ = client.shutdown(Shutdown::Both);
        return;
    }
    let Ok(server) = TcpStream::connect(address) else {
        return;
    };
    let both = |stream: &TcpStream| stream.try_clone().expect("a socket can be had twice");
    wire.lock()
        .expect("no panic")
        .open
        .extend([both(&client), both(&server)]);
    for (from, to) in [(both(&client), both(&server)), (server, client)] {
        let wire = wire.clone();
        std::thread::spawn(move || pump(from, to, &wire));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, wire: &Mutex<Wire>) {
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let state = || wire.lock().expect("no panic").state;
        if let State::Slow(delay) = state() {
            std::thread::sleep(delay);
        }
        while state() == State::Silent {
            std::thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
