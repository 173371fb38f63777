//! A decode node that serves a page pool, and a prefill node that writes pages into it.
//!
//! ```text
//! cargo run -p engine --example kv -- serve 10.0.0.7:15001
//! cargo run -p engine --example kv -- push 10.0.0.7:15001
//! ```
//!
//! Without arguments both run in this process. Settings come from the environment or a file: `WEFT_PROTOCOL=tcp`,
//! `WEFT_SECRET=…`, `WEFT_CONFIG=weft.toml`.

use std::time::{Duration, Instant};

use engine::{Access, Batch, Engine, Error, HostMemory, Shape};

const PAGE: u64 = 64 << 10;
const PAGES: u64 = 256;
/// Announced with each page, so that the pool's owner can count them.
const TAG: u16 = 1;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", address] => serve(Some(address)).and_then(|(engine, pool)| receive(&engine, &pool)),
        ["push", target] => push(target),
        [] => {
            let (engine, pool) = serve(None)?;
            push(engine.name())?;
            receive(&engine, &pool)
        }
        _ => {
            eprintln!("usage: kv [serve HOST:PORT | push HOST:PORT]");
            std::process::exit(2);
        }
    }
}

fn serve(address: Option<&str>) -> Result<(Engine, HostMemory), Error> {
    let mut builder = Engine::builder();
    if let Some(address) = address {
        let listen = address.parse().map_err(|error| Error::Setting(format!("{address}: {error}")))?;
        builder = builder.listen(listen);
    }
    let engine = builder.build()?;
    let pool = HostMemory::new((PAGE * PAGES) as usize)?;
    engine.register("kv", pool.clone(), Access::READ_WRITE)?;
    println!("{} serves {PAGES} pages of {PAGE} bytes", engine.name());
    Ok((engine, pool))
}

/// Waits for the word that a batch of pages is there, and looks at them.
fn receive(engine: &Engine, pool: &HostMemory) -> Result<(), Error> {
    let Some(note) = engine.notification(Instant::now() + Duration::from_secs(600)) else {
        println!("nobody came");
        return Ok(());
    };
    let pages = engine.arrivals(&note.from, TAG)?;
    let mut first = [0; 8];
    pool.read(0, &mut first)?;
    println!("{} wrote {} pages; the first begins with {first:?}", note.from, pages.value());
    Ok(())
}

fn push(target: &str) -> Result<(), Error> {
    let engine = Engine::builder().build()?;
    let source = HostMemory::new((PAGE * PAGES) as usize)?;
    for page in 0..PAGES {
        source.write((page * PAGE) as usize, &page.to_le_bytes())?;
    }
    let local = engine.register("source", source, Access::LOCAL)?;
    let decode = engine.open(target, Instant::now() + Duration::from_secs(10))?;
    let kv = decode.buffer("kv")?;

    let began = Instant::now();
    let mut batch = Batch::new();
    for page in 0..PAGES {
        // Back to front, because pools hand out pages in no order.
        let place = Shape::contiguous(kv.addr() + (PAGES - 1 - page) * PAGE, PAGE);
        batch.write_with_tag(&local, local.range(page * PAGE, PAGE), &decode, place, TAG)?;
    }
    batch.notify_on_completion("all pages are there");
    engine.submit(&mut batch)?.wait()?;
    let took = began.elapsed();
    let rate = (PAGE * PAGES) as f64 / took.as_secs_f64() / 1e9;
    println!("{PAGES} pages over {} in {took:.1?}, {rate:.2} GB/s ({})", decode.path(), decode.path_reason());
    Ok(())
}
