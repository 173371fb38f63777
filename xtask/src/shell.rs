//! Runs programs, says what it runs, and turns failures into errors that name the command.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program to run: `std::process::Command` that prints itself first (on stderr, after `+`).
pub(crate) struct Cmd {
    inner: Command,
    shown: String,
    quiet: bool,
}

/// What a captured program printed, and whether it succeeded.
pub(crate) struct Captured {
    /// Exit status 0?
    pub(crate) success: bool,
    /// Standard output, with invalid UTF-8 replaced.
    pub(crate) stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub(crate) stderr: String,
}

/// The variables that `cargo run` puts into our environment for this package alone. A child cargo must not see
/// them: build scripts that watch them would be rebuilt each time somebody alternates xtask and plain cargo.
fn is_our_own_package(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_")
        || matches!(
            &*name,
            "CARGO_MANIFEST_DIR"
                | "CARGO_MANIFEST_PATH"
                | "CARGO_CRATE_NAME"
                | "CARGO_BIN_NAME"
                | "CARGO_PRIMARY_PACKAGE"
        )
}

impl Cmd {
    /// A program found through `PATH` or by its path.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut inner = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_our_own_package(name)) {
            inner.env_remove(name);
        }
        Self { inner, shown: quote(program), quiet: false }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo(subcommand: &str) -> Self {
        let mut cmd = Self::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        cmd.shown = "cargo".to_owned();
        cmd.arg(subcommand)
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&quote(arg.as_ref()));
        self.inner.arg(arg);
        self
    }

    /// More arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// A variable of the child's environment, shown before the program's name.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{name}={} {}", quote(value.as_ref()), self.shown);
        self.inner.env(name, value);
        self
    }

    /// A variable of the child's environment that would only clutter the command line.
    pub(crate) fn env_quiet(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Hides a variable from the child.
    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.inner.env_remove(name);
        self
    }

    /// The child's working directory.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Does not print the command line.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    fn announce(&self) {
        if !self.quiet {
            eprintln!("+ {self}");
        }
    }

    /// Runs it with our own stdin, stdout and stderr; an error if it does not exit with 0.
    pub(crate) fn run(mut self) -> Result<()> {
        self.announce();
        let status = self.inner.status().with_context(|| format!("cannot start `{self}`"))?;
        if !status.success() {
            bail!("`{self}` ended with {status}");
        }
        Ok(())
    }

    /// Runs it and keeps what it prints.
    pub(crate) fn capture(mut self) -> Result<Captured> {
        self.announce();
        let output =
            self.inner.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{self}`"))?;
        Ok(Captured {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and returns its standard output; an error with its standard error if it does not exit with 0.
    pub(crate) fn stdout(self) -> Result<String> {
        let shown = self.to_string();
        let captured = self.capture()?;
        if !captured.success {
            bail!("`{shown}` failed:\n{}", captured.stderr.trim_end());
        }
        Ok(captured.stdout)
    }

    /// Runs it silently: did it start and exit with 0?
    pub(crate) fn succeeds(self) -> bool {
        self.quiet().capture().is_ok_and(|captured| captured.success)
    }

    /// Becomes the program: its signals, terminal and exit status are then ours. Returns only if it cannot start.
    pub(crate) fn exec(mut self) -> anyhow::Error {
        use std::os::unix::process::CommandExt as _;
        self.announce();
        let error = self.inner.exec();
        anyhow::Error::new(error).context(format!("cannot start `{self}`"))
    }

    /// The underlying command, for what this wrapper does not cover.
    pub(crate) fn into_inner(self) -> Command {
        self.announce();
        self.inner
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// As one would type it in a shell.
fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Is there a program of this name on `PATH` (or in the system's sbin folders, which users may lack)?
pub(crate) fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_shows_itself_as_one_would_type_it() {
        let cmd = Cmd::new("echo").args(["a b", "it's", "", "x=1"]).env("K", "v w");
        assert_eq!(cmd.to_string(), r"K='v w' echo 'a b' 'it'\''s' '' x=1");
    }

    #[test]
    fn a_failure_names_the_command_and_its_status() {
        let error = Cmd::new("sh").args(["-c", "exit 3"]).quiet().run().unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("status: 3"), "{error}");
        let error = Cmd::new("/nonexistent/program").quiet().run().unwrap_err().to_string();
        assert!(error.contains("cannot start"), "{error}");
    }

    #[test]
    fn stdout_is_returned_and_stderr_is_in_the_error() {
        assert_eq!(Cmd::new("sh").args(["-c", "echo out"]).quiet().stdout().unwrap(), "out\n");
        let error =
            Cmd::new("sh").args(["-c", "echo why >&2; exit 1"]).quiet().stdout().unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
    }
}
