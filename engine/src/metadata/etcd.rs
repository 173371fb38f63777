//! etcd, over the JSON gateway that every etcd server has beside gRPC (`/v3/…`).
//!
//! The gateway rather than a gRPC client: that needs protoc to build and an async runtime to run, for three calls a lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{Request, StatusCode};

use super::location::{Location, Options};
use super::store::{MAX_VALUE_BYTES, Renewal, Store};
use super::web;
use crate::error::Error;

/// Longest answer: a value in base64, and what is around it.
const MAX_ANSWER: usize = MAX_VALUE_BYTES / 3 * 4 + (64 << 10);

/// etcd's own limit on a request, unless its operator has raised it.
const USUAL_LIMIT: &str =
    "etcd takes requests of 1.5 MiB unless it is started with a larger --max-request-bytes";

/// Metadata in etcd. Each key has a lease of its own.
#[derive(Debug)]
pub(super) struct EtcdStore {
    agent: Agent,
    /// `http://host:port` of each endpoint.
    endpoints: Vec<String>,
    /// The one that answered last.
    current: AtomicUsize,
    server: String,
    timeout: Duration,
    leases: Mutex<HashMap<String, String>>,
}

/// What the gateway says to a range request. It writes 64-bit numbers as strings.
#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(default)]
    value: String,
}

impl EtcdStore {
    pub(super) fn new(endpoints: &[String], tls: bool, options: &Options) -> Result<Self, Error> {
        let server = Location::Etcd { endpoints: endpoints.to_vec(), tls }.to_string();
        let scheme = if tls { "https" } else { "http" };
        let mut limits = options.clone();
        // One endpoint that does not answer leaves time for the others.
        limits.timeout = options.timeout / u32::try_from(endpoints.len().clamp(1, 3)).unwrap_or(1);
        Ok(Self {
            agent: web::agent(&limits)?,
            endpoints: endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect(),
            current: AtomicUsize::new(0),
            server,
            timeout: options.timeout,
            leases: Mutex::default(),
        })
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the endpoint that answered last, then the others, until one answers or the time is over.
    fn ask(&self, action: &str, path: &str, question: &Value) -> Result<Value, Error> {
        let failed =
            |reason: String| Error::Metadata { store: self.server.clone(), action: action.into(), reason };
        let end = Instant::now() + self.timeout;
        let first = self.current.load(Ordering::Relaxed);
        let mut trouble = String::new();
        for turn in 0..self.endpoints.len() {
            let at = (first + turn) % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(at) else { break };
            if turn > 0 && Instant::now() >= end {
                break;
            }
            let request = Request::post(format!("{endpoint}{path}"))
                .header("content-type", "application/json")
                .body(question.to_string())
                .map_err(|error| failed(error.to_string()))?;
            match web::send(&self.agent, request, MAX_ANSWER) {
                Ok((StatusCode::OK, body)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return serde_json::from_slice(&body).map_err(|error| {
                        failed(format!("{endpoint} did not answer as etcd does ({error})"))
                    });
                }
                // The cluster has lost its leader, or this member its way: another one may know more.
                Ok((status, body)) if status.is_server_error() => {
                    trouble = format!("{endpoint} answered {status}: {}", web::excerpt(&body));
                }
                Ok((status, body)) => {
                    return Err(failed(format!(
                        "it answered {status}: {}; {USUAL_LIMIT}",
                        web::excerpt(&body)
                    )));
                }
                Err(reason) => trouble = format!("{endpoint}: {reason}"),
            }
        }
        Err(failed(trouble))
    }

    /// Grants a lease and puts the value under it.
    fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Error> {
        let action = format!("publishing {key}");
        let seconds = ttl.as_millis().div_ceil(1000).max(1);
        let granted = self.ask(&action, "/v3/lease/grant", &json!({ "TTL": seconds.to_string() }))?;
        let lease = match &granted["ID"] {
            Value::String(id) if !id.is_empty() => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => {
                return Err(Error::Metadata {
                    store: self.server.clone(),
                    action,
                    reason: "it granted a lease without an id; is it an etcd server?".into(),
                });
            }
        };
        let question =
            json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value), "lease": lease });
        if let Err(error) = self.ask(&action, "/v3/kv/put", &question) {
            self.revoke(&lease);
            return Err(error);
        }
        // With the old lease would go whatever is still under it, which the new value is not.
        if let Some(old) = self.leases().insert(key.to_owned(), lease) {
            self.revoke(&old);
        }
        Ok(())
    }

    /// Best effort: a lease that stays ends by itself.
    fn revoke(&self, lease: &str) {
        let _ = self.ask("revoking a lease", "/v3/lease/revoke", &json!({ "ID": lease }));
    }

    /// Whether the lease lives on.
    fn keep_alive(&self, key: &str, lease: &str) -> Result<bool, Error> {
        let answer = self.ask(&format!("renewing {key}"), "/v3/lease/keepalive", &json!({ "ID": lease }))?;
        // A lease that has ended comes back without a time to live.
        Ok(match &answer["result"]["TTL"] {
            Value::String(ttl) => ttl != "0" && !ttl.starts_with('-'),
            Value::Number(ttl) => ttl.as_i64().is_some_and(|ttl| ttl > 0),
            _ => false,
        })
    }
}

impl Store for EtcdStore {
    fn server(&self) -> &str {
        &self.server
    }

    fn lookup(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let action = format!("reading {key}");
        let wrong = |reason: String| Error::Metadata {
            store: self.server.clone(),
            action: action.clone(),
            reason: format!("it did not answer as etcd does ({reason})"),
        };
        let answer = self.ask(&action, "/v3/kv/range", &json!({ "key": STANDARD.encode(key) }))?;
        let found: Found = serde_json::from_value(answer).map_err(|error| wrong(error.to_string()))?;
        match found.kvs.first() {
            None => Ok(None),
            Some(pair) => STANDARD.decode(&pair.value).map(Some).map_err(|error| wrong(error.to_string())),
        }
    }

    fn publish(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Error> {
        self.put(key, value, ttl)
    }

    fn renew(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Renewal, Error> {
        let lease = self.leases().get(key).cloned();
        let there = self.lookup(key)?;
        match there {
            Some(there) if there != value => return Ok(Renewal::Taken),
            Some(_) => {}
            None => {
                self.put(key, value, ttl)?;
                return Ok(Renewal::Restored);
            }
        }
        match lease {
            Some(lease) if self.keep_alive(key, &lease)? => Ok(Renewal::Kept),
            // It ended between the two questions, or the server was set back to an older state.
            _ => self.put(key, value, ttl).map(|()| Renewal::Restored),
        }
    }

    fn remove(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        // Compare and delete are one transaction: a newer owner's entry stays.
        let (key64, value64) = (STANDARD.encode(key), STANDARD.encode(value));
        let question = json!({
            "compare": [{ "key": key64, "target": "VALUE", "result": "EQUAL", "value": value64 }],
            "success": [{ "request_delete_range": { "key": key64 } }],
        });
        let answer = self.ask(&format!("removing {key}"), "/v3/kv/txn", &question)?;
        if answer["succeeded"] == true {
            let lease = self.leases().remove(key);
            if let Some(lease) = lease {
                self.revoke(&lease);
            }
        }
        Ok(())
    }
}
