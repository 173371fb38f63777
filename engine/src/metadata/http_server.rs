//! A metadata server that speaks Mooncake's HTTP protocol, for clusters that run none yet.
//!
//! `GET`, `PUT` and `DELETE` on `/metadata?key=…`, the value as the body; Mooncake's nodes can use it as they use its own
//! server. A `PUT` with `&ttl_ms=…` ends after that time unless it is repeated, which is how engines of this crate publish
//! themselves. `GET /health` says that it is alive and how much it holds. Everything is in memory: after a restart, engines
//! publish themselves again within a third of their lease.
//!
//! It bounds what others can make it hold or wait for ([`Options`]). There is no authentication in this protocol, so it
//! belongs on a network of its own; engines do not trust what it says, they ask the peer itself.
//!
//! ```
//! use engine::metadata::http_server::{Options, serve};
//!
//! # fn main() -> Result<(), engine::Error> {
//! let server = serve("127.0.0.1:0".parse().unwrap(), Options::default())?;
//! println!("metadata server at {}", server.url());
//! server.shutdown();
//! # Ok(())
//! # }
//! ```

mod table;

use std::convert::Infallible;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full as FullBody, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, watch};

use self::table::{Full, Table};
use super::store::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::error::Error;

/// How long a connection is served before it is asked to come anew.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);

/// How often entries that have ended are swept out; none is ever served after its end.
const SWEEP: Duration = Duration::from_secs(1);

/// Bounds of a [`Server`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Most entries. Default 100,000.
    pub max_entries: usize,
    /// Longest value in bytes. Default 16 MiB.
    pub max_value_bytes: usize,
    /// Bytes of all keys and values together. Default 1 GiB.
    pub max_total_bytes: usize,
    /// Connections at a time; more wait. Default 1024.
    pub max_connections: usize,
    /// Time that a client has to say what it wants, and to take the answer. Default 10 s.
    pub patience: Duration,
    /// Lease of entries whose `PUT` names none, such as Mooncake's. Default none: they stay until they are deleted.
    pub default_ttl: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_entries: 100_000,
            max_value_bytes: MAX_VALUE_BYTES,
            max_total_bytes: 1 << 30,
            max_connections: 1024,
            patience: Duration::from_secs(10),
            default_ttl: None,
        }
    }
}

/// Starts a server on a thread of its own; port 0 takes a free one. It ends when the [`Server`] is dropped.
///
/// # Errors
/// [`Error::Metadata`] when the address cannot be listened on.
pub fn serve(addr: SocketAddr, options: Options) -> Result<Server, Error> {
    let failed = |error: std::io::Error| Error::Metadata {
        store: format!("http://{addr}"),
        action: "listening".into(),
        reason: format!("{error}; choose another address or port"),
    };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    if !addr.ip().is_loopback() {
        tracing::warn!(
            "metadata server on {addr}: the protocol has NO AUTHENTICATION, whoever can connect can change any entry"
        );
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    let state = Arc::new(State { table: Mutex::default(), options });
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new().name("weft-metadata-server".into());
    let serving = Arc::clone(&state);
    let thread = thread.spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, serving, stopped).await,
                Err(error) => tracing::error!(%error, "metadata server: its socket cannot be used"),
            }
        });
    });
    let thread = Some(thread.map_err(failed)?);
    Ok(Server { addr, state, stop, thread })
}

/// A running server. Dropping it ends it.
pub struct Server {
    addr: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What engines and Mooncake's nodes are given as their metadata server.
    pub fn url(&self) -> String {
        format!("http://{}/metadata", self.addr)
    }

    /// Entries that it holds.
    pub fn entries(&self) -> usize {
        let mut table = self.state.table();
        table.sweep(Instant::now());
        table.size().0
    }

    /// Ends it; connections are closed.
    pub fn shutdown(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that the thread has ended by itself.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.addr)
    }
}

struct State {
    table: Mutex<Table>,
    options: Options,
}

impl State {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(state.options.max_connections));
    let sweeping = Arc::clone(&state);
    let sweep = async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            sweeping.table().sweep(Instant::now());
        }
    };
    let accepting = async move {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        if let Err(error) = converse(TokioIo::new(stream), state).await {
                            tracing::debug!(%from, %error, "metadata server: connection ended");
                        }
                        drop(slot);
                    });
                }
                // Out of file descriptors, say: an immediate second attempt would spin.
                Err(error) => {
                    tracing::warn!(%error, "metadata server: no connection accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = sweep => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// Serves one connection: within [`CONNECTION_LIFE`], and no request waits longer than the patience allows.
async fn converse(stream: TokioIo<tokio::net::TcpStream>, state: Arc<State>) -> Result<(), hyper::Error> {
    let patience = state.options.patience;
    let service = hyper::service::service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(64 << 10);
    let connection = http.serve_connection(stream, service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(patience, connection).await.unwrap_or(Ok(()))
}

type Answer = Response<FullBody<Bytes>>;

async fn answer(request: Request<Incoming>, state: &State) -> Answer {
    match request.uri().path() {
        "/health" => return health(state),
        "/metadata" | "/" => {}
        _ => return say(StatusCode::NOT_FOUND, "this server has /metadata?key=… and /health"),
    }
    let query = request.uri().query().unwrap_or_default();
    let Some(key) = parameter(query, "key").filter(|key| !key.is_empty() && key.len() <= MAX_KEY_BYTES)
    else {
        return say(StatusCode::BAD_REQUEST, "the query needs a key of 1 to 1024 bytes: /metadata?key=…");
    };
    match *request.method() {
        Method::GET => match state.table().get(&key, Instant::now()) {
            Some(value) => Response::new(FullBody::new(value)),
            None => say(StatusCode::NOT_FOUND, "metadata not found"),
        },
        Method::PUT => put(request, &key, state).await,
        Method::DELETE => match state.table().remove(&key, Instant::now()) {
            true => say(StatusCode::OK, "metadata deleted"),
            false => say(StatusCode::NOT_FOUND, "metadata not found"),
        },
        _ => {
            let mut answer = say(StatusCode::METHOD_NOT_ALLOWED, "GET, PUT or DELETE");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, PUT, DELETE"));
            answer
        }
    }
}

async fn put(request: Request<Incoming>, key: &str, state: &State) -> Answer {
    let options = &state.options;
    let ttl = match parameter(request.uri().query().unwrap_or_default(), "ttl_ms").map(|text| text.parse()) {
        None => options.default_ttl,
        Some(Ok(millis @ 1..)) => Some(Duration::from_millis(millis)),
        Some(_) => return say(StatusCode::BAD_REQUEST, "ttl_ms is a number of milliseconds, at least 1"),
    };
    let body = Limited::new(request.into_body(), options.max_value_bytes).collect();
    let value = match tokio::time::timeout(options.patience, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return say(StatusCode::PAYLOAD_TOO_LARGE, "the value is too long for this server");
        }
        Ok(Err(_)) => return say(StatusCode::BAD_REQUEST, "the body ended early"),
        Err(_) => return say(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
    };
    let now = Instant::now();
    let mut table = state.table();
    let mut taken = table.put(key, value.clone(), ttl, now, options);
    if taken.is_err() {
        table.sweep(now);
        taken = table.put(key, value, ttl, now, options);
    }
    match taken {
        Ok(()) => say(StatusCode::OK, "metadata updated"),
        Err(Full::Entries) => {
            say(StatusCode::INSUFFICIENT_STORAGE, "the server holds as many entries as it may")
        }
        Err(Full::Bytes) => say(StatusCode::INSUFFICIENT_STORAGE, "the server holds as many bytes as it may"),
    }
}

fn health(state: &State) -> Answer {
    let (entries, bytes) = state.table().size();
    let mut answer =
        say(StatusCode::OK, format!("{{\"status\":\"ok\",\"entries\":{entries},\"bytes\":{bytes}}}"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn say(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(FullBody::new(text.into()));
    *answer.status_mut() = status;
    answer
}

/// The first parameter of that name, decoded; none if it is not UTF-8.
fn parameter(query: &str, name: &str) -> Option<String> {
    let raw = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    // In a query a plus is a space; curl and ureq write both as %XX.
    let raw = raw.replace('+', " ");
    percent_decode_str(&raw).decode_utf8().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = "ttl_ms=5&key=mooncake%2Fram%2fnode%3a1&x";
        assert_eq!(parameter(query, "key").as_deref(), Some("mooncake/ram/node:1"));
        assert_eq!(parameter(query, "ttl_ms").as_deref(), Some("5"));
        for absent in ["", "key", "keys=1", "akey=1", "key=%ff"] {
            assert_eq!(parameter(absent, "key"), None, "{absent}");
        }
    }
}
