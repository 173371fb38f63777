//! Names and the engines behind them.

use std::fmt;
use std::sync::Arc;

use super::keeper::{Keeper, Lease};
use super::location::{Location, Options};
use super::record::Record;
use super::store::Store;
use crate::error::Error;

/// A metadata server as the engine uses it. Clones are the same; the last one dropped, its leases included, ends the
/// background thread.
#[derive(Clone)]
pub struct Directory {
    keeper: Arc<Keeper>,
    cluster: Option<Arc<str>>,
}

impl Directory {
    /// The directory at this URL (see [`Location`]); `None` where it asks for none. Does not wait for the server: the first
    /// call that needs it does.
    ///
    /// # Errors
    /// [`Error::Setting`] for a URL that makes no sense, or a kind of server that this program was built without.
    pub fn connect(url: &str, options: Options) -> Result<Option<Self>, Error> {
        let location: Location = url.parse()?;
        let store = match &location {
            Location::PeerToPeer => return Ok(None),
            #[cfg(feature = "etcd")]
            Location::Etcd { endpoints, tls } => super::etcd::EtcdStore::new(endpoints, *tls, &options)
                .map(|store| Arc::new(store) as Arc<dyn Store>),
            #[cfg(not(feature = "etcd"))]
            Location::Etcd { .. } => without_feature(&location, "etcd"),
            #[cfg(feature = "redis")]
            Location::Redis(url) => {
                super::redis::RedisStore::new(url, &options).map(|store| Arc::new(store) as Arc<dyn Store>)
            }
            #[cfg(not(feature = "redis"))]
            Location::Redis(_) => without_feature(&location, "redis"),
            #[cfg(feature = "http")]
            Location::Http(url) => {
                super::http::HttpStore::new(url, &options).map(|store| Arc::new(store) as Arc<dyn Store>)
            }
            #[cfg(not(feature = "http"))]
            Location::Http(_) => without_feature(&location, "http"),
        }?;
        Ok(Some(Self::new(store, &options)))
    }

    /// A directory on a store of the caller's.
    pub fn new(store: Arc<dyn Store>, options: &Options) -> Self {
        Self {
            keeper: Arc::new(Keeper::new(store, options.ttl)),
            cluster: options.cluster.as_deref().map(Into::into),
        }
    }

    /// Kind and address of the server, without credentials.
    pub fn server(&self) -> &str {
        self.keeper.store().server()
    }

    /// The store underneath, for tools that look at what is in it. A record lies under `weft/[cluster/]node/<name>`.
    pub fn store(&self) -> &dyn Store {
        self.keeper.store()
    }

    /// Publishes where the engine called `name` is. An earlier record, of a life before or of another node, is replaced at
    /// once: the last one to come has the name. Blocks until the server has it; keeps it there until the lease is dropped.
    ///
    /// # Errors
    /// [`Error::Metadata`]: the server is not there or refuses, or the name is too long.
    pub fn publish(&self, name: &str, record: &Record) -> Result<Lease, Error> {
        self.publish_at(self.key("weft", "node", name), record.encode())
    }

    /// Where the engine called `name` is; `None` if the server knows no such name.
    ///
    /// # Errors
    /// [`Error::Metadata`]: the server is not there, or what it holds is not a record.
    pub fn lookup(&self, name: &str) -> Result<Option<Record>, Error> {
        let Some(bytes) = self.get(&self.key("weft", "node", name))? else { return Ok(None) };
        Record::decode(&bytes).map(Some).map_err(|reason| Error::Metadata {
            store: self.server().to_owned(),
            action: format!("reading where {name:?} is"),
            reason: format!("{reason}; remove the entry, or use another cluster id"),
        })
    }

    /// Publishes any value under any key, as [`publish`](Self::publish) does.
    pub(crate) fn publish_at(&self, key: String, value: Vec<u8>) -> Result<Lease, Error> {
        self.keeper.publish(key, value)
    }

    /// The value under any key.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        super::store::check(self.server(), key, &[])?;
        self.keeper.store().lookup(key)
    }

    /// `<system>/[cluster/]<kind>/<name>`.
    pub(crate) fn key(&self, system: &str, kind: &str, name: &str) -> String {
        match &self.cluster {
            Some(cluster) => format!("{system}/{cluster}/{kind}/{name}"),
            None => format!("{system}/{kind}/{name}"),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Directory({})", self.server())
    }
}

#[cfg(not(all(feature = "etcd", feature = "redis", feature = "http")))]
fn without_feature(location: &Location, feature: &str) -> Result<Arc<dyn Store>, Error> {
    Err(Error::Setting(format!(
        "metadata {location}: this program was built without the feature `{feature}` of the engine"
    )))
}
