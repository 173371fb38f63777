//! The other process of a benchmark: this program once more, on the far side of whatever is measured.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// How long it may take to end by itself once it has been told to.
const PATIENCE: Duration = Duration::from_secs(5);

/// This program, running a second time as the other end. Both talk in lines: its standard input and output.
///
/// Dropping it closes its standard input, on which it should end by itself ([`OtherEnd::stay`]); one that does not within five
/// seconds is killed.
#[derive(Debug)]
pub struct OtherEnd {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl OtherEnd {
    /// Starts it with `role` in its environment as `value`, by which it knows what it is.
    ///
    /// # Errors
    ///
    /// The system's, when no process can be started.
    pub fn start(role: &str, value: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(role, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("the other process has no output")?;
        Ok(Self { input: child.stdin.take(), output: BufReader::new(output), child })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it says, without its end. Blocks until there is one.
    ///
    /// # Errors
    ///
    /// When it has ended instead.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the other process ended; what it has to say is above".into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// The next line, which has to be of `N` words.
    ///
    /// # Errors
    ///
    /// When it has ended, or says something else.
    pub fn words<const N: usize>(&mut self) -> Result<[String; N]> {
        let line = self.line()?;
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        words.try_into().map_err(|_| format!("the other process was to say {N} words, not {line:?}").into())
    }

    /// Says `line` to it.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or("the other process has no input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// In the other process: says `line` to the one that started it.
    ///
    /// # Errors
    ///
    /// When that has ended.
    pub fn say(line: &str) -> Result<()> {
        let mut output = std::io::stdout();
        writeln!(output, "{line}")?;
        Ok(output.flush()?)
    }

    /// In the other process: blocks until the one that started it lets go of it, or dies.
    ///
    /// # Errors
    ///
    /// When standard input cannot be read.
    pub fn stay() -> Result<()> {
        std::io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

impl Drop for OtherEnd {
    fn drop(&mut self) {
        drop(self.input.take());
        let told = Instant::now();
        while told.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // It was told; nothing is left to do about an error.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
