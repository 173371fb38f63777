//! Two processes, one descriptor round trip, bytes both ways.
//!
//! `cargo run --release -p efa-transport --example pair -- [PROVIDER] [NICS] [MODE]`; MODE is `check` (default), `kill` (the
//! target is killed while writes are under way), `idle` (nothing happens for five seconds) or `rate`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use efa_transport::{Access, Batch, Config, Provider, Region, Request, Transport};
use fabric_safe::{Mapping, PageKind};

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

const LEN: usize = 64 << 20;

fn main() -> Anything<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &str| args.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let (provider, nics) = (arg(0, "auto"), arg(1, "1"));
    if arg(2, "check") == "serve" {
        return serve(&provider, &nics);
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args([&provider, &nics, "serve"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let result = drive(&mut child, &provider, &nics, &arg(2, "check"));
    child.kill()?;
    child.wait()?;
    result
}

fn open(name: &str, provider: &str, nics: &str) -> Anything<(Transport, Region)> {
    let mut config =
        Config::new().name(name).provider(Provider::parse(provider)).endpoints_per_nic(nics.parse()?);
    if !matches!(provider, "auto" | "efa" | "efa-direct" | "shm") {
        config = config.source("127.0.0.1");
    }
    let transport = Transport::open(config)?;
    let region = transport.register(Arc::new(Mapping::anonymous(LEN, PageKind::Small)?), Access::ALL)?;
    Ok((transport, region))
}

/// The target: tells about itself, listens to what the other side tells, and is otherwise passive.
fn serve(provider: &str, nics: &str) -> Anything<()> {
    let (transport, region) = open("target", provider, nics)?;
    println!("{} {:x}", hex::encode(transport.local_descriptor()), region.addr());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some(seed) = line.strip_prefix("check ") {
            let mut bytes = vec![0; LEN];
            let wanted = pattern(seed.parse()?);
            let mut good = false;
            for _ in 0..1000 {
                region.read(0, &mut bytes)?;
                good = bytes == wanted;
                if good {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            println!("{good}");
        } else {
            transport.add_or_update_peer(&hex::decode(&line)?)?;
            println!("known");
        }
    }
    Ok(())
}

fn drive(child: &mut Child, provider: &str, nics: &str, mode: &str) -> Anything<()> {
    let mut to = child.stdin.take().ok_or("no stdin")?;
    let mut from = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let mut line = || -> Anything<String> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    let (transport, region) = open("initiator", provider, nics)?;
    print!("{}", transport.describe());
    let told = line()?;
    let (descriptor, addr) = told.split_once(' ').ok_or("the target told nothing")?;
    let there = u64::from_str_radix(addr, 16)?;
    let peer = transport.add_or_update_peer(&hex::decode(descriptor)?)?;
    writeln!(to, "{}", hex::encode(transport.local_descriptor()))?;
    line()?;
    println!("warm-up: {:?}", transport.warm_up(peer, Instant::now() + Duration::from_secs(5))?);
    let mut batch = Batch::new();
    match mode {
        "kill" => {
            batch.set_deadline(Duration::from_secs(3));
            for i in 0..2000 {
                if i == 20 {
                    child.kill()?;
                    child.wait()?;
                    println!("killed the target");
                }
                let began = Instant::now();
                batch.push(Request::write(peer, &region, region.addr(), there, LEN as u64))?;
                let handle = transport.submit(&mut batch)?;
                if let Err(error) = handle.wait() {
                    let quiet = handle.quiesced(Instant::now() + Duration::from_secs(8));
                    println!("after {:?}: {error}; quiesced: {quiet}", began.elapsed());
                    if began.elapsed() < Duration::from_millis(1) {
                        break;
                    }
                }
                if i > 25 {
                    break;
                }
            }
            while let Some(event) = transport.events().try_next() {
                println!("{event:?}");
            }
            let began = Instant::now();
            println!(
                "{:?} {:?}",
                region.unregister(Instant::now() + Duration::from_secs(5)),
                began.elapsed()
            );
        }
        "idle" => {
            let before = cpu();
            std::thread::sleep(Duration::from_secs(5));
            println!("{:.2} % of a core while idle", (cpu() - before) * 20.0);
        }
        "rate" => {
            for size in [4 << 10, 64 << 10, 1 << 20, 16 << 20] {
                let count = (256 << 20) / size;
                let began = Instant::now();
                let mut done = 0;
                while done < count {
                    for i in 0..(count - done).min(256) {
                        let at = ((done + i) * size % LEN) as u64;
                        batch.push(Request::write(
                            peer,
                            &region,
                            region.addr() + at,
                            there + at,
                            size as u64,
                        ))?;
                    }
                    done += batch.len();
                    transport.submit(&mut batch)?.wait()?;
                }
                let took = began.elapsed().as_secs_f64();
                println!("{size:>9} bytes: {:.2} GB/s", (count * size) as f64 / took / 1e9);
            }
            let mut times: Vec<Duration> = Vec::new();
            for _ in 0..2000 {
                batch.push(Request::write(peer, &region, region.addr(), there, 4096))?;
                let began = Instant::now();
                transport.submit(&mut batch)?.wait()?;
                times.push(began.elapsed());
            }
            times.sort();
            println!("one write of 4096 bytes: p50 {:?}, p99 {:?}", times[1000], times[1980]);
        }
        _ => {
            for seed in 0..4 {
                region.write(0, &pattern(seed))?;
                batch.push(Request::write(peer, &region, region.addr(), there, LEN as u64))?;
                transport.submit(&mut batch)?.wait()?;
                writeln!(to, "check {seed}")?;
                println!("written and verified there: {}", line()?);
                region.write(0, &vec![0; LEN])?;
                batch.push(Request::read(peer, &region, region.addr(), there, LEN as u64))?;
                transport.submit(&mut batch)?.wait()?;
                let mut bytes = vec![0; LEN];
                region.read(0, &mut bytes)?;
                println!("read back and verified here: {}", bytes == pattern(seed));
            }
        }
    }
    println!("{:#?}", transport.statistics());
    Ok(())
}

fn pattern(seed: u32) -> Vec<u8> {
    (0..LEN as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed as u8).collect()
}

/// Processor time of this process in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
