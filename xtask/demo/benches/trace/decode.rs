//! The decode process: holds the KV pool, twice, once for each side.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use benchkit::Result;
use engine::{Access, HostMemory};

use crate::bare;
use crate::spec::{Spec, Target};

/// Label of the pool.
pub(crate) const POOL: &str = "kv-pool";

pub(crate) fn run(spec: &Spec) -> Result<()> {
    let geometry = spec.geometry()?;
    let pool_bytes = spec.blocks * geometry.pages_per_block() * geometry.page_bytes();
    let engine = spec.path.builder().build()?;
    let _region = engine.register(POOL, HostMemory::new(pool_bytes)?, Access::READ_WRITE)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let target = Target { name: engine.name().to_owned(), port: listener.local_addr()?.port() };
    std::thread::spawn(move || bare::serve(&listener, vec![1; pool_bytes]));
    println!("{}", serde_json::to_string(&target)?);
    // Until the parent lets go.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    engine.shutdown(Instant::now() + Duration::from_secs(1));
    Ok(())
}
