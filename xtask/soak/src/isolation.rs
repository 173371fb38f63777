//! A network of the soak's own, in which connections can be cut without touching the machine's.

use std::process::Command;

use anyhow::{Result, ensure};

/// A network namespace with nothing but a loopback, and a filter in it.
#[derive(Debug)]
pub(crate) struct Isolation(());

impl Isolation {
    /// Moves this thread, and every process that it starts from now on, into a network of its own. Needs root and nftables.
    pub(crate) fn enter() -> Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        run(&["ip", "link", "set", "lo", "up"])?;
        run(&["nft", "add table inet soak"])?;
        run(&["nft", "add chain inet soak in { type filter hook input priority 0; }"])?;
        Ok(Self(()))
    }

    /// Nothing reaches this address any more, and nothing comes from it.
    pub(crate) fn cut(&self, address: &str) -> Result<()> {
        run(&["nft", &format!("add rule inet soak in ip daddr {address} drop")])?;
        run(&["nft", &format!("add rule inet soak in ip saddr {address} drop")])
    }

    /// Ends every cut.
    pub(crate) fn heal(&self) -> Result<()> {
        run(&["nft", "flush chain inet soak in"])
    }
}

fn run(command: &[&str]) -> Result<()> {
    let output = Command::new(command[0]).args(&command[1..]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {}", command.join(" "), said.trim());
    Ok(())
}
