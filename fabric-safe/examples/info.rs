//! What this machine has: a readable `fi_info`.
//!
//!     cargo run -p fabric-safe --example info -- [--all] [PROVIDER]
//!
//! Lists what can do remote memory access over reliable datagrams; with `--all`, everything.

use fabric_safe::{Error, Hints, leaked_objects};

fn main() -> Result<(), Error> {
    let mut hints = Hints::new();
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq("--all").is_some() {
        hints = Hints::everything();
    }
    if let Some(provider) = words.next() {
        hints = hints.provider(provider);
    }
    let infos = match hints.discover() {
        // Not every machine has libfabric, and a program can go on without.
        Err(Error::Library(reason)) => {
            println!("{reason}");
            return Ok(());
        }
        other => other?,
    };
    if let Some(library) = fabric_safe::library() {
        println!("libfabric {} at {}\n", library.package_version(), library.path().display());
    }
    for info in &infos {
        println!("{info}\n");
    }
    println!("{} found", infos.len());
    assert_eq!(leaked_objects(), 0);
    Ok(())
}
