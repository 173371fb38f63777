//! Software EFA cards that all processes of a run share.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use benchkit::Result;

/// Cards of each simulated host.
const NICS: &str = "4";
/// The end of what the shell says.
const END: &str = "these were the variables";

/// A network of cards; it is there as long as a shell that waits on it.
pub(crate) struct Cards {
    shell: Child,
    env: Vec<(String, OsString)>,
}

impl Cards {
    pub(crate) fn plug_in() -> Result<Self> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let script = format!("env; echo '{END}'; read -r end || :");
        let mut shell = Command::new(cargo)
            .args(["xtask", "soft-efa", "--nics", NICS, "--", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut env = Vec::new();
        let output = BufReader::new(shell.stdout.take().ok_or("the shell has no output")?);
        for line in output.lines() {
            let line = line?;
            if line == END {
                return Ok(Self { shell, env });
            }
            if let Some((name, value)) = line.split_once('=')
                && std::env::var_os(name).as_deref() != Some(value.as_ref())
            {
                env.push((name.to_owned(), value.into()));
            }
        }
        Err(format!("`cargo xtask soft-efa` failed: {}", shell.wait()?).into())
    }

    /// What makes a process find the cards.
    pub(crate) fn env(&self) -> &[(String, OsString)] {
        &self.env
    }
}

impl Drop for Cards {
    fn drop(&mut self) {
        // Its input ends, and so does the shell.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
