//! Mooncake's HTTP metadata protocol: `GET`, `PUT` and `DELETE` with `?key=…`, the value as the body.
//!
//! A `PUT` carries the lease as `&ttl_ms=…`, which [`http_server`](super::http_server) obeys. Mooncake's own server does not
//! know it: there, what is published stays until it is removed, so a node that dies without a word stays known by name until
//! it comes back, and opening it fails with its address.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::Agent;
use ureq::http::{Method, Request, StatusCode};

use super::location::{Location, Options};
use super::store::{MAX_VALUE_BYTES, Renewal, Store};
use super::web;
use crate::error::Error;

/// Metadata over HTTP(S).
#[derive(Debug)]
pub(super) struct HttpStore {
    agent: Agent,
    url: String,
    server: String,
}

impl HttpStore {
    pub(super) fn new(url: &str, options: &Options) -> Result<Self, Error> {
        let server = Location::Http(url.to_owned()).to_string();
        if let Err(error) = Request::get(url).body(()) {
            return Err(Error::Setting(format!("metadata {server}: {error}")));
        }
        Ok(Self { agent: web::agent(options)?, url: url.to_owned(), server })
    }

    fn failed(&self, action: String, reason: String) -> Error {
        Error::Metadata { store: self.server.clone(), action, reason }
    }

    /// Sends one request about `key`. An answer that is neither 200 nor 404 is an error.
    fn ask(&self, method: Method, key: &str, more: &str, body: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
        let request =
            Request::builder().method(&method).uri(format!("{}{separator}key={key}{more}", self.url));
        let sent = match method {
            Method::PUT => request
                .header("content-type", "application/json")
                .body(body)
                .map_err(|error| error.to_string())
                .and_then(|request| web::send(&self.agent, request, MAX_VALUE_BYTES)),
            _ => request
                .body(())
                .map_err(|error| error.to_string())
                .and_then(|request| web::send(&self.agent, request, MAX_VALUE_BYTES)),
        };
        match sent? {
            (StatusCode::OK, body) => Ok(Some(body)),
            (StatusCode::NOT_FOUND, _) if method != Method::PUT => Ok(None),
            (status, body) => Err(format!("it answered {status}: {}", web::excerpt(&body))),
        }
    }
}

impl Store for HttpStore {
    fn server(&self) -> &str {
        &self.server
    }

    fn lookup(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.ask(Method::GET, key, "", &[]).map_err(|reason| self.failed(format!("reading {key}"), reason))
    }

    fn publish(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Error> {
        let ttl = format!("&ttl_ms={}", ttl.as_millis().max(1));
        match self.ask(Method::PUT, key, &ttl, value) {
            Ok(_) => Ok(()),
            Err(reason) => Err(self.failed(format!("publishing {key}"), reason)),
        }
    }

    /// Not atomic, for the protocol has no condition: two nodes that claim one name in the same instant may both believe for
    /// one renewal that they have it.
    fn renew(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Renewal, Error> {
        let found = match self.lookup(key)? {
            Some(there) if there != value => return Ok(Renewal::Taken),
            Some(_) => Renewal::Kept,
            None => Renewal::Restored,
        };
        self.publish(key, value, ttl)?;
        Ok(found)
    }

    fn remove(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        if self.lookup(key)?.is_none_or(|there| there != value) {
            return Ok(());
        }
        match self.ask(Method::DELETE, key, "", &[]) {
            Ok(_) => Ok(()),
            Err(reason) => Err(self.failed(format!("removing {key}"), reason)),
        }
    }
}
