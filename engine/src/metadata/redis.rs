//! Redis: a value with an expiry for each key, and two short scripts so that comparing and changing are one step.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, Connection, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _, RedisError};

use super::location::{Location, Options};
use super::store::{MAX_VALUE_BYTES, Renewal, Store};
use crate::error::Error;

/// Keeps, restores or leaves alone, and says which: 0, 1, 2.
const RENEW: &str = "local v = redis.call('GET', KEYS[1]) \
    if v and v ~= ARGV[1] then return 2 end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
    if v then return 0 else return 1 end";

const REMOVE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Metadata in Redis, over one connection that is opened again when it breaks.
pub(super) struct RedisStore {
    client: Client,
    server: String,
    timeout: Duration,
    connection: Mutex<Option<Connection>>,
}

impl RedisStore {
    pub(super) fn new(url: &str, options: &Options) -> Result<Self, Error> {
        let server = Location::Redis(url.to_owned()).to_string();
        let wrong = |reason: String| Error::Setting(format!("metadata {server}: {reason}"));
        let info = url.into_connection_info().map_err(|error| wrong(error.to_string()))?;
        let info = with_environment(info, |name| std::env::var(name).ok()).map_err(wrong)?;
        let client = Client::open(info).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { client, server, timeout: options.timeout, connection: Mutex::default() })
    }

    /// Runs one command; on a connection that turns out to be broken, once more on a new one.
    fn run<T: FromRedisValue>(&self, action: &str, command: &redis::Cmd) -> Result<T, Error> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if let Some(mut connection) = kept.take() {
            match command.query(&mut connection) {
                Ok(value) => {
                    *kept = Some(connection);
                    return Ok(value);
                }
                Err(error) if !is_broken(&error) => {
                    *kept = Some(connection);
                    return Err(self.failed(action, &error));
                }
                Err(error) if error.is_timeout() || begun.elapsed() >= self.timeout => {
                    return Err(self.failed(action, &error));
                }
                Err(_) => {}
            }
        }
        let mut connection = self.connect().map_err(|error| self.failed(action, &error))?;
        let value = command.query(&mut connection).map_err(|error| self.failed(action, &error));
        *kept = Some(connection);
        value
    }

    fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(self.timeout)?;
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }

    fn failed(&self, action: &str, error: &RedisError) -> Error {
        let what_next = if is_broken(error) { "; is the server running and reachable?" } else { "" };
        Error::Metadata {
            store: self.server.clone(),
            action: action.into(),
            reason: format!("{error}{what_next}"),
        }
    }
}

/// Whether the connection can be used again after this.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || error.is_unrecoverable_error()
}

/// What the URL does not say, Mooncake's variables may.
fn with_environment(
    info: ConnectionInfo,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ConnectionInfo, String> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut redis = info.redis_settings().clone();
    if redis.password().is_none()
        && let Some(password) = set("MC_REDIS_PASSWORD")
    {
        redis = redis.set_password(password);
        if let (None, Some(user)) = (redis.username(), set("MC_REDIS_USERNAME")) {
            redis = redis.set_username(user);
        }
    }
    if redis.db() == 0
        && let Some(index) = set("MC_REDIS_DB_INDEX")
    {
        let index = index.parse().map_err(|_| format!("MC_REDIS_DB_INDEX {index:?} is not a number"))?;
        redis = redis.set_db(index);
    }
    Ok(info.set_redis_settings(redis))
}

impl Store for RedisStore {
    fn server(&self) -> &str {
        &self.server
    }

    fn lookup(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        // One byte more than is accepted, however long the value is. Redis takes an absent key for an empty value; nobody
        // publishes those.
        let mut command = redis::cmd("GETRANGE");
        command.arg(key).arg(0).arg(MAX_VALUE_BYTES);
        let action = format!("reading {key}");
        let value: Vec<u8> = self.run(&action, &command)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::Metadata {
                store: self.server.clone(),
                action,
                reason: format!("its value has more than {MAX_VALUE_BYTES} bytes; it is not read"),
            });
        }
        Ok(Some(value).filter(|value| !value.is_empty()))
    }

    fn publish(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Error> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value).arg("PX").arg(millis(ttl));
        self.run(&format!("publishing {key}"), &command)
    }

    fn renew(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Renewal, Error> {
        let mut command = redis::cmd("EVAL");
        command.arg(RENEW).arg(1).arg(key).arg(value).arg(millis(ttl));
        let found: i64 = self.run(&format!("renewing {key}"), &command)?;
        Ok(match found {
            0 => Renewal::Kept,
            1 => Renewal::Restored,
            _ => Renewal::Taken,
        })
    }

    fn remove(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        let mut command = redis::cmd("EVAL");
        command.arg(REMOVE).arg(1).arg(key).arg(value);
        self.run::<i64>(&format!("removing {key}"), &command).map(|_| ())
    }
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisStore({})", self.server)
    }
}
